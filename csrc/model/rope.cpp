// Formulas: RoFormer (arXiv 2104.09864); linear (Chen et al., arXiv 2306.15595); dynamic NTK; llama3
// (Llama 3.1); YaRN (arXiv 2309.00071), all in the form transformers' modeling_rope_utils gives them. Angles
// are rounded where transformers rounds them (inverse frequency and position times frequency in fp32): at
// position 8000 a freer choice would differ by more than 1e-4 rad.
#include "model/rope.h"

#include <algorithm>
#include <cmath>

namespace smezo {
namespace {

constexpr double kPi = 3.14159265358979323846;

// theta^(2i / head_dim), in fp32.
float period(double theta, int64_t i, int64_t head_dim) {
  const float exponent = static_cast<float>(2 * i) / static_cast<float>(head_dim);
  return static_cast<float>(
      std::pow(static_cast<double>(static_cast<float>(theta)), static_cast<double>(exponent)));
}

float llama3_frequency(const RopeConfig& r, float f) {
  const double length = r.original_max_position;
  const double wavelength = 2 * kPi / f;
  if (wavelength < length / r.high_freq_factor) return f;
  if (wavelength > length / r.low_freq_factor) return static_cast<float>(f / r.factor);
  const double smooth = (length / wavelength - r.low_freq_factor) / (r.high_freq_factor - r.low_freq_factor);
  return static_cast<float>((1 - smooth) * f / r.factor + smooth * f);
}

std::vector<float> yarn(const RopeConfig& r, int64_t head_dim) {
  const auto correction = [&](double rotations) {
    return head_dim * std::log(r.original_max_position / (rotations * 2 * kPi)) / (2 * std::log(r.theta));
  };
  double low = correction(r.beta_fast), high = correction(r.beta_slow);
  if (r.truncate) low = std::floor(low), high = std::ceil(high);
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(head_dim - 1));
  if (low == high) high += 0.001;
  std::vector<float> out;
  for (int64_t i = 0; i < head_dim / 2; ++i) {
    const double p = period(r.theta, i, head_dim);
    const double ramp = std::clamp((i - low) / (high - low), 0.0, 1.0);
    out.push_back(static_cast<float>(1.0 / (r.factor * p) * ramp + 1.0 / p * (1 - ramp)));
  }
  return out;
}

}  // namespace

std::vector<float> inverse_frequencies(const RopeConfig& rope, int64_t head_dim, int64_t max_position,
                                       int64_t length) {
  if (rope.kind == RopeKind::yarn) return yarn(rope, head_dim);
  double theta = rope.theta;
  if (rope.kind == RopeKind::dynamic) {
    const double stretch =
        static_cast<double>(std::max(length, max_position)) / static_cast<double>(max_position);
    theta *= std::pow(rope.factor * stretch - (rope.factor - 1),
                      static_cast<double>(head_dim) / static_cast<double>(head_dim - 2));
  }
  std::vector<float> out;
  for (int64_t i = 0; i < head_dim / 2; ++i) {
    float f = 1.0f / period(theta, i, head_dim);
    if (rope.kind == RopeKind::linear) f /= static_cast<float>(rope.factor);
    if (rope.kind == RopeKind::llama3) f = llama3_frequency(rope, f);
    out.push_back(f);
  }
  return out;
}

RopeTable::RopeTable(const ModelConfig& config)
    : rope_(config.rope),
      half_(config.head_dim / 2),
      max_position_(config.max_position),
      inverse_(inverse_frequencies(config.rope, config.head_dim, config.max_position, config.max_position)) {}

void RopeTable::append(const std::vector<float>& inverse, int64_t position, std::vector<Row>& rows) const {
  for (const float f : inverse) {
    const double angle = static_cast<float>(position) * f;
    rows.push_back({static_cast<float>(std::cos(angle) * rope_.attention_factor),
                    static_cast<float>(std::sin(angle) * rope_.attention_factor)});
  }
}

void RopeTable::fill(int64_t position, int64_t length, int64_t column, int64_t ld, float* cos, float* sin) {
  std::vector<Row> one;
  const Row* row = nullptr;
  if (rope_.kind == RopeKind::dynamic && length > max_position_) {
    if (stretched_length_ != length) {
      stretched_ = inverse_frequencies(rope_, 2 * half_, max_position_, length);
      stretched_length_ = length;
    }
    append(stretched_, position, one);
    row = one.data();
  } else {
    for (int64_t p = static_cast<int64_t>(rows_.size()) / half_; p <= position; ++p)
      append(inverse_, p, rows_);
    row = rows_.data() + position * half_;
  }
  for (int64_t i = 0; i < half_; ++i) {
    cos[i * ld + column] = row[i].cos;
    sin[i * ld + column] = row[i].sin;
  }
}

}  // namespace smezo
