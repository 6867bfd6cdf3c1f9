// The `scalar` instruction set: plain loops over the element functions. It is the oracle of every other set
// and runs everywhere. Strips are fp32 (bf16 values held in fp32 when compute is bf16), their leading
// dimension is k; a packed activation is [panel][k][16] fp32.
#include "kernels/reference.h"

#include "kernels/tables.h"

namespace smezo {

const Kernels* scalar_kernels() {
  static constexpr Kernels table = {
      .name = "scalar",
      .operand_dtype = reference::operand_dtype,
      .operand_ld = reference::operand_ld,
      .packed_bytes = reference::packed_bytes,
      .produce = reference::produce,
      .apply_update = reference::apply_update,
      .decode = reference::decode,
      .unpack_state = reference::unpack_state,
      .pack_state = reference::pack_state,
      .count_state = reference::count_state,
      .noise = reference::noise,
      .pack = reference::pack,
      .gemm = reference::gemm,
      .exact_gemm = reference::exact_gemm,
      .rms_norm = reference::rms_norm,
      .rope = reference::rope,
      .attention = reference::attention,
      .silu_mul = reference::silu_mul,
      .silu_mul_pack = reference::silu_mul_pack,
      .rms_norm_pack = reference::rms_norm_pack,
      .lse_update = reference::lse_update,
  };
  return &table;
}

}  // namespace smezo
