// How a weight is stored. Names as safetensors writes them, plus BF16T8: a bf16 plane and a signed-byte tail
// plane (I10); NF4: two elements a byte with a scale for each block (format/nf4.h); I8: a byte an element
// with a scale for each row (format/int8.h).
#pragma once
#include <cstdint>
#include <string>

namespace smezo {

enum class DType : uint8_t { F32, F16, BF16, BF16T8, NF4, I8 };

// Bytes of one element over all its planes. ArgumentError for NF4, which has less than one.
int64_t dtype_bytes(DType d);
// Bytes of n elements over all planes, scales not counted.
int64_t bytes_of(DType d, int64_t n);
bool holds_trained(DType d);  // F32, BF16, BF16T8
// Bytes of an element of a trained dtype, its tail not counted.
constexpr int64_t plane_element_bytes(DType d) { return d == DType::F32 ? 4 : 2; }
// Converting is a copy (BF16 to BF16T8: with a tail of 0), so that even the payload of a NaN stays.
bool keeps_bits(DType from, DType to);
const char* dtype_name(DType d);                 // "F32", "F16", "BF16", "BF16T8", "NF4", "I8"
DType dtype_from_name(const std::string& name);  // FormatError for a name not in the table

}  // namespace smezo
