// How bitsandbytes lays a quantized linear weight out in a checkpoint, and what transformers writes into
// config.json beside it. The weight X of [rows, cols] becomes
//
//   NF4   X                                U8  [n/2, 1]        two codes a byte, the first in the high half
//         X.absmax                         F32 [blocks], or U8 [blocks] doubly quantized, with
//         X.nested_absmax                  F32 [blocks/256, rounded up]
//         X.nested_quant_map               F32 [256]
//         X.quant_map                      F32 [16]
//         X.quant_state.bitsandbytes__nf4  U8  JSON: quant_type, blocksize, dtype, shape, and
//                                          where it is doubly quantized nested_blocksize, nested_dtype,
//                                          nested_offset
//   int8  X                                I8  [rows, cols]
//         SCB (instead of "weight")        F32 [rows]
//         weight_format                    U8  [] 0, "row"
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "io/json.h"
#include "io/safetensors.h"

namespace smezo {

constexpr int64_t kNestedBlock = 256;

struct QuantFormat {
  DType dtype = DType::NF4;  // or I8, for which block and double_quant are not used
  int64_t block = 64;        // elements that share an absmax
  bool double_quant = false;
};

// ArgumentError: a dtype that is neither, a block that is not a power of two in 32..4096.
void check_quant_format(const QuantFormat& format);

// A weight's tensors by what they hold: indices into `specs`, -1 where the format has none.
struct QuantTensors {
  std::vector<TensorSpec> specs;
  int codes = -1, absmax = -1, nested_absmax = -1, nested_map = -1, map = -1, state = -1, weight_format = -1;
};

// `name` ends in ".weight". ArgumentError: n is odd (NF4).
QuantTensors quantized_tensors(const std::string& name, int64_t rows, int64_t cols,
                               const QuantFormat& format);

// The JSON of quant_state, padded with spaces to the length quantized_tensors gave it: the offset is known
// only when the weight has been read. `stored` is the dtype the weight had (F32, F16, BF16).
std::string quant_state_text(int64_t rows, int64_t cols, DType stored, const QuantFormat& format,
                             float nested_offset);

// The value of config.json's "quantization_config".
Json quantization_config(const QuantFormat& format);

// A weight that bitsandbytes quantizes: a matrix inside a decoder block ("...layers.3.mlp.up_proj.weight").
// Embeddings, head, norms and biases stay.
bool is_block_linear(const std::string& name, const std::vector<int64_t>& shape);

}  // namespace smezo
