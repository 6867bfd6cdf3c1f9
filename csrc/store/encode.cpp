#include "store/encode.h"

#include <algorithm>
#include <vector>

#include "base/bits.h"
#include "format/dynamic8.h"
#include "format/int8.h"
#include "format/nf4.h"
#include "store/bnb_layout.h"

namespace smezo {
namespace {

// As integers: the order of magnitudes is that of their bits, a NaN is above all, and the loop becomes
// vectors.
float absmax_of(const float* x, int64_t n) {
  int32_t most = 0;
  for (int64_t i = 0; i < n; ++i) most = std::max(most, static_cast<int32_t>(f32_bits(x[i]) & 0x7FFFFFFFu));
  return f32_from_bits(static_cast<uint32_t>(most));
}

// nf4_code of each element. One threshold at a time over the block, so that both loops become vectors;
// element by element it took ten times as long.
void nf4_codes(const float* scaled, int64_t n, int32_t* codes) {
  std::fill(codes, codes + n, 0);
  for (uint32_t k = 0; k < 15; ++k) {
    const float threshold = nf4_threshold(k);
    for (int64_t i = 0; i < n; ++i) codes[i] += scaled[i] > threshold ? 1 : 0;
  }
}

}  // namespace

void nf4_encode(const float* x, int64_t n, int64_t block, uint8_t* codes, float* absmax) {
  std::vector<float> scaled(static_cast<size_t>(block));
  std::vector<int32_t> code(static_cast<size_t>(block));
  for (int64_t begin = 0; begin < n; begin += block) {
    const int64_t m = std::min(block, n - begin);
    const float most = absmax_of(x + begin, m);
    if (m == block) {
      for (int64_t i = 0; i < m; ++i) scaled[i] = nf4_scaled(x[begin + i], most, true);
    } else {
      for (int64_t i = 0; i < m; ++i) scaled[i] = nf4_scaled(x[begin + i], most, false);
    }
    nf4_codes(scaled.data(), m, code.data());
    for (int64_t i = 0; i < m / 2; ++i)
      codes[begin / 2 + i] = static_cast<uint8_t>(code[2 * i] << 4 | code[2 * i + 1]);
    absmax[begin / block] = nf4_stored_absmax(most, m == block);
  }
}

float nested_offset(const float* absmax, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(absmax[i]);
  return static_cast<float>(sum / static_cast<double>(n));
}

void nested_encode(const float* absmax, int64_t n, float offset, uint8_t* codes, float* nested_absmax) {
  float centred[kNestedBlock];
  for (int64_t begin = 0; begin < n; begin += kNestedBlock) {
    const int64_t m = std::min(kNestedBlock, n - begin);
    for (int64_t i = 0; i < m; ++i) centred[i] = absmax[begin + i] - offset;
    nested_absmax[begin / kNestedBlock] = dynamic8_encode(centred, m, codes + begin);
  }
}

void int8_encode(const float* x, int64_t rows, int64_t cols, int8_t* codes, float* absmax) {
  for (int64_t r = 0; r < rows; ++r) {
    const float* const from = x + r * cols;
    absmax[r] = absmax_of(from, cols);
    const float factor = int8_factor(absmax[r]);
    for (int64_t c = 0; c < cols; ++c) codes[r * cols + c] = int8_code(from[c], factor);
  }
}

}  // namespace smezo
