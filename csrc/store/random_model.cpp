// Random numbers are splitmix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"):
// they make a file, nothing that trains depends on them. NF4 codes come two at a time from a table that
// gives each code the share a normal weight would.
#include "store/random_model.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/error.h"
#include "format/dynamic8.h"
#include "format/half.h"
#include "format/nf4.h"
#include "io/file.h"
#include "store/in_order.h"

namespace smezo {
namespace {

constexpr int64_t kPieceBytes = 1 << 20;
// Mean absmax of a block of 64 normal weights, in standard deviations, and how far ours vary around it.
constexpr float kAbsmaxOverStd = 2.4f, kAbsmaxSpread = 0.15f;

struct SplitMix {
  uint64_t state;
  uint64_t next() {
    uint64_t z = state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
};

SplitMix stream_of(uint64_t seed, uint64_t tensor, uint64_t piece) {
  SplitMix s{seed};
  for (const uint64_t word : {tensor, piece}) s.state = s.next() ^ word * 0xD1342543DE82EF95u;
  return s;
}

// The middle of the i-th of 256 equal parts of the standard normal distribution.
double normal_quantile(int i) {
  double low = -6, high = 6;
  for (int step = 0; step < 60; ++step) {
    const double middle = (low + high) / 2;
    (std::erfc(-middle / std::sqrt(2.0)) / 2 < (i + 0.5) / 256 ? low : high) = middle;
  }
  return low;
}

// 16 random bits -> two codes.
struct CodePairs {
  std::array<uint8_t, 65536> pair;
  CodePairs() {
    std::array<uint8_t, 256> code;
    for (int i = 0; i < 256; ++i)
      code[i] = static_cast<uint8_t>(nf4_code(static_cast<float>(normal_quantile(i)) / kAbsmaxOverStd));
    for (size_t i = 0; i < pair.size(); ++i)
      pair[i] = static_cast<uint8_t>(code[i >> 8] << 4 | code[i & 255]);
  }
};

void random_codes(SplitMix& random, int64_t n_bytes, uint8_t* out) {
  static const CodePairs pairs;
  for (int64_t i = 0; i < n_bytes; i += 4) {
    const uint64_t bits = random.next();
    const int64_t m = std::min<int64_t>(4, n_bytes - i);
    for (int64_t j = 0; j < m; ++j) out[i + j] = pairs.pair[bits >> (16 * j) & 0xFFFF];
  }
}

// The sum of four bytes is near enough to normal: variance 4 (256^2 - 1) / 12 around 510.
void random_bf16(SplitMix& random, int64_t n, uint16_t* out) {
  static const float scale = kRandomStd / std::sqrt(4 * (256.0f * 256.0f - 1) / 12);
  for (int64_t i = 0; i < n; i += 2) {
    uint64_t bits = random.next();
    bits = (bits & 0x00FF00FF00FF00FFu) + (bits >> 8 & 0x00FF00FF00FF00FFu);
    bits += bits >> 16;  // lanes 0 and 2 hold sums of four
    for (int64_t j = 0; j < std::min<int64_t>(2, n - i); ++j)
      out[i + j] = f32_to_bf16(static_cast<float>(static_cast<int>(bits >> (32 * j) & 0x7FF) - 510) * scale);
  }
}

class RandomWriter {
 public:
  RandomWriter(const QuantFormat& format, uint64_t seed, ThreadPool& pool)
      : format_(format), seed_(seed), pool_(pool) {}

  void matrix(uint64_t id, const TensorSpec& t, SafetensorsSink& sink, size_t first) {
    stream(id, spec_bytes(t), sink, first, [](SplitMix& random, int64_t n_bytes, uint8_t* to) {
      random_bf16(random, n_bytes / 2, reinterpret_cast<uint16_t*>(to));
    });
  }

  void nf4(uint64_t id, const TensorSpec& t, const QuantTensors& to, SafetensorsSink& sink, size_t first) {
    stream(id, t.shape[0] * t.shape[1] / 2, sink, first + to.codes, random_codes);
    SplitMix random = stream_of(seed_, id, ~uint64_t{0});
    const float middle = kRandomStd * kAbsmaxOverStd;
    if (format_.double_quant) {
      std::vector<uint8_t> codes(static_cast<size_t>(to.specs[to.absmax].shape[0]));
      for (uint8_t& code : codes) code = static_cast<uint8_t>(random.next() >> 56);
      const std::vector<float> nested(static_cast<size_t>(to.specs[to.nested_absmax].shape[0]),
                                      middle * kAbsmaxSpread);
      sink.write(first + to.absmax, codes.data(), static_cast<int64_t>(codes.size()));
      sink.write(first + to.nested_absmax, nested.data(), static_cast<int64_t>(nested.size()) * 4);
      sink.write(first + to.nested_map, dynamic8().value.data(), 256 * 4);
    } else {
      std::vector<float> absmax(static_cast<size_t>(to.specs[to.absmax].shape[0]));
      for (float& a : absmax) {
        const float around = static_cast<float>(random.next() >> 40) * 0x1p-23f - 1;  // -1 to 1
        a = middle * (1 + kAbsmaxSpread * around);
      }
      sink.write(first + to.absmax, absmax.data(), static_cast<int64_t>(absmax.size()) * 4);
    }
    float map[16];
    for (uint32_t k = 0; k < 16; ++k) map[k] = nf4_value(k);
    sink.write(first + to.map, map, sizeof map);
    const std::string state = quant_state_text(t.shape[0], t.shape[1], DType::BF16, format_, middle);
    sink.write(first + to.state, state.data(), static_cast<int64_t>(state.size()));
  }

 private:
  template <class Make>
  void stream(uint64_t id, int64_t n_bytes, SafetensorsSink& sink, size_t tensor, const Make& make) {
    const auto size_of = [&](int64_t piece) { return std::min(kPieceBytes, n_bytes - piece * kPieceBytes); };
    const auto fill = [&](int64_t piece, int, uint8_t* to) {
      SplitMix random = stream_of(seed_, id, static_cast<uint64_t>(piece));
      make(random, size_of(piece), to);
    };
    in_order(pool_, (n_bytes + kPieceBytes - 1) / kPieceBytes, kPieceBytes, fill,
             [&](int64_t piece, const uint8_t* from) { sink.write(tensor, from, size_of(piece)); });
  }

  QuantFormat format_;
  uint64_t seed_;
  ThreadPool& pool_;
};

}  // namespace

int64_t write_random_model(const std::string& to, const Json& config, const std::vector<TensorSpec>& tensors,
                           bool quantized, const QuantFormat& format, uint64_t seed, int64_t shard_bytes,
                           ThreadPool& pool, const OnProgress& progress) {
  check_quant_format(format);
  check<ArgumentError>(!quantized || format.dtype == DType::NF4, "make-model",
                       "random weights in int8, expected bf16 or nf4");
  std::vector<QuantTensors> rows;
  std::vector<TensorGroup> groups;
  int64_t total = 0, done = 0;
  for (const TensorSpec& t : tensors) {
    QuantTensors row;
    if (quantized && is_block_linear(t.name, t.shape)) {
      row = quantized_tensors(t.name, t.shape[0], t.shape[1], format);
    } else {
      row.specs = {t};
    }
    for (const TensorSpec& spec : row.specs) total += spec_bytes(spec);
    groups.push_back(row.specs);
    rows.push_back(std::move(row));
  }
  NewFolder folder(to);
  RandomWriter writer(format, seed, pool);
  write_shards(folder.path(), groups, shard_bytes, [&](size_t g, SafetensorsSink& sink, size_t first) {
    const TensorSpec& t = tensors[g];
    if (rows[g].codes >= 0) {
      writer.nf4(g, t, rows[g], sink, first);
    } else if (t.shape.size() == 2) {
      writer.matrix(g, t, sink, first);
    } else {
      const std::vector<uint16_t> ones(static_cast<size_t>(spec_bytes(t) / 2), uint16_t{0x3F80});
      sink.write(first, ones.data(), spec_bytes(t));
    }
    for (const TensorSpec& spec : groups[g]) done += spec_bytes(spec);
    if (progress) progress(done, total);
  });
  Json written = config;
  if (quantized) written.set("quantization_config", quantization_config(format));
  write_atomically(join(folder.path(), "config.json"), written.dump());
  folder.finish();
  return total;
}

}  // namespace smezo
