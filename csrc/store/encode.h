// Weights into bitsandbytes' formats, many elements at a time. Rounding is that of the element functions in
// format/, which say what it equals.
#pragma once
#include <cstdint>

namespace smezo {

// codes: n / 2 bytes, absmax: one for each `block` elements, of which the last may be short. n is even, x
// begins with a block. The absmax of a block that holds a NaN or an infinity is not finite.
void nf4_encode(const float* x, int64_t n, int64_t block, uint8_t* codes, float* absmax);

// The mean of n absmax values: summed in fp64, in order, and rounded to fp32 once. bitsandbytes takes torch's
// fp32 mean, whose summation order depends on the processor and the number of threads; the two differ in the
// last bits now and then (tests/test_quantized.py counts it).
float nested_offset(const float* absmax, int64_t n);

// Double quantization: codes of absmax - offset, and the absmax of each kNestedBlock of those.
void nested_encode(const float* absmax, int64_t n, float offset, uint8_t* codes, float* nested_absmax);

// codes: rows * cols, absmax: one a row; not finite where a row holds a NaN or an infinity.
void int8_encode(const float* x, int64_t rows, int64_t cols, int8_t* codes, float* absmax);

}  // namespace smezo
