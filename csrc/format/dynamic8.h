// The 8-bit dynamic code ("8-Bit Approximations for Parallelism in Deep Learning", arXiv 1511.04561, as
// bitsandbytes' create_dynamic_map builds it), which double quantization keeps absmax values in. Encoding is
// that of bitsandbytes 0.50's x86-64 library: x / absmax is first put on a lattice of 65536 points in [-1, 1]
// and the code is the number of midpoints below that point. The lattice is coarser than the map around zero:
// zero itself takes code 131, not 127.
#pragma once
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

namespace smezo {

struct Dynamic8 {
  std::array<float, 256> value;   // code -> value, rising: 127 negative ones, 0, 127 positive ones, 1
  std::array<float, 255> middle;  // between code k and k + 1
};

// Seven decades below 1, the k-th from the bottom divided into 2^k equal parts, whose middles are the values.
// Every step rounds in fp32 as torch.linspace does (from both ends towards the middle, fused).
inline Dynamic8 make_dynamic8() {
  Dynamic8 d;
  d.value[127] = 0;
  d.value[255] = 1;
  size_t at = 128;
  for (int decade = 0; decade < 7; ++decade) {
    const int parts = 1 << decade;
    const float step = (1.0f - 0.1f) / static_cast<float>(parts);
    const float scale = static_cast<float>(1.0 / std::array{1e6, 1e5, 1e4, 1e3, 1e2, 1e1, 1e0}[decade]);
    const auto edge = [&](int k) {
      return k < (parts + 1) / 2 ? std::fma(step, static_cast<float>(k), 0.1f)
                                 : std::fma(-step, static_cast<float>(parts - k), 1.0f);
    };
    for (int k = 0; k < parts; ++k) {
      const float v = scale * ((edge(k) + edge(k + 1)) / 2);
      d.value[at] = v;
      d.value[254 - at] = -v;
      ++at;
    }
  }
  for (size_t k = 0; k < 255; ++k) d.middle[k] = (d.value[k] + d.value[k + 1]) * 0.5f;
  return d;
}

inline const Dynamic8& dynamic8() {
  static const Dynamic8 d = make_dynamic8();
  return d;
}

// x in [-1, 1] up to rounding, or NaN (0 times infinity, in a block of absmax below 2^-128), which takes 0.
inline uint8_t dynamic8_code(float x) {
  if (std::isnan(x)) x = -1;
  const float inside = x < -1 ? -1 : x > 1 ? 1 : x;
  const int point = static_cast<int>(std::fma((inside + 1.0f) * 0.5f, 65535.0f, 0.5f));
  const float on_lattice = 2 * static_cast<float>(point) / 65535.0f - 1.0f;
  const auto& middle = dynamic8().middle;
  return static_cast<uint8_t>(std::lower_bound(middle.begin(), middle.end(), on_lattice) - middle.begin());
}

// Codes of a block of n; returns its absmax. A block of zeros takes the codes 0.
inline float dynamic8_encode(const float* x, int64_t n, uint8_t* codes) {
  float absmax = 0;
  for (int64_t i = 0; i < n; ++i) absmax = std::max(absmax, std::fabs(x[i]));
  const float factor = 1.0f / absmax;
  for (int64_t i = 0; i < n; ++i) codes[i] = absmax == 0 ? uint8_t{0} : dynamic8_code(x[i] * factor);
  return absmax;
}

}  // namespace smezo
