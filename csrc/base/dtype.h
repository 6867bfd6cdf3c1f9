// How a weight is stored. Names as safetensors writes them, plus BF16T8: a bf16 plane and a signed-byte tail
// plane (I10).
#pragma once
#include <cstdint>
#include <string>

namespace smezo {

enum class DType : uint8_t { F32, F16, BF16, BF16T8 };

// Bytes of one element over all its planes.
int64_t dtype_bytes(DType d);
const char* dtype_name(DType d);                 // "F32", "F16", "BF16", "BF16T8"
DType dtype_from_name(const std::string& name);  // FormatError for a name not in the table

}  // namespace smezo
