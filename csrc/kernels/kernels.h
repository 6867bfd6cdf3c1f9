// The verbs: everything that is compiled once per instruction set. Each implementation fills one table of
// function pointers; dispatch.cpp holds the ordered list. Plain pointers, no containers, no allocation, no
// threads: a caller hands every thread its own rows and its own scratch.
//
// Activations are feature-major: X[k][t], t over the packed tokens, a row per feature, so that a vector lane
// is a token. Lanes never mix, so a token's result does not depend on which tokens are beside it (I12), and
// all sums run over features in increasing order. t is padded to a multiple of 16 (kLanes); padding columns
// hold zeros or garbage that no result depends on.
#pragma once
#include <cstdint>

#include "base/cpu.h"
#include "base/view.h"
#include "direction/direction.h"
#include "update/rule.h"

namespace smezo {

constexpr int64_t kLanes = 16;       // tokens in a panel
constexpr int64_t kStripAlign = 64;  // scratch and packed buffers are aligned to this many bytes

// What GEMM inputs are rounded to. bf16: operands and activations are rounded to bf16 (nearest even), sums
// are fp32.
enum class Compute : uint8_t { f32, bf16 };

// How a branch's operand is made from w, eps and m z:
//   nearest   Q(fma(eps, m z, w))                 Q: to bf16 when compute is bf16, nothing when f32
//   dither    the same, Q stochastic; the same 16 dither bits (Purpose::dither) for every branch of the query
//   split     two operands, Q(w) and m z in bf16 (exact for gaussian8 and rademacher); the caller multiplies
//   both
// The operand of the plain branch (eps = 0) is Q(w), which for BF16T8 is the bf16 plane as it is (I10).
enum class OperandMode : uint8_t { nearest, dither, split };

struct OperandJob {
  WeightView w;
  TensorDirection dir;
  OperandMode mode = OperandMode::nearest;
  Compute compute = Compute::bf16;
  float eps = 0;  // > 0, or 0 for a plain branch: then only `plus` is written and dir is ignored
  // Where not null, of the tensor's element w.first on: m z is divided by the square root of it (HiZOO).
  const float* curvature = nullptr;
};

constexpr int kMaxQueries = 128;

// The noise of a record before the one that is applied.
struct PastRecord {
  uint32_t step = 0;
  const float* c = nullptr;  // [n_queries]
};

// One committed record applied to one tensor, m taken once from the value before the record. sgd: decay
// first, w <- fma(-decay, m w, w), then for q = 0..n_queries-1 in order w <- fma(-c[q], m z_q, w), all in
// fp32. Other rules: decay, then e = fma(c[q], z_q, e) over the queries from 0, then what update/rule.h says.
// The result is rounded once to the stored format (BF16T8 and BF16: stochastically, Purpose::rounding at the
// record's step, query 0; F32: as it is). Masked-out elements and their moments keep their bits.
struct UpdateJob {
  WeightView w;  // writable
  TensorDirection
      dir;  // stream.step = the record's step; stream.query is set by the kernel to 0..n_queries-1
  float decay = 0;
  int n_queries = 0;
  const float* c = nullptr;  // sgd: fp32(lr g_q / n_queries); other rules: fp32(g_q / n_queries)
  Rule rule;
  // Of the tensor's element w.first on, as many as the rule has. Null: they are first_moment, averaged over
  // `past`, oldest first, and this record, and kept nowhere.
  float* moments[2] = {nullptr, nullptr};
  const PastRecord* past = nullptr;
  int n_past = 0;
  // Where not null, what the step takes off, [n_rows][ld_given] for the rows of the call, and readable for a
  // vector beyond its end: then n_queries is 1, c[0] is 1, the rule is sgd, and z of that query is this.
  const float* given = nullptr;
  int64_t ld_given = 0;
};

// A working copy beside the base that it is made from. Its support: the elements whose base value, rounded to
// state.dtype (nearest), the mask lets in. all, small or large: a random mask has no support here.
struct StateJob {
  WeightView base;
  WeightView state;  // F32, BF16 or BF16T8; written by unpack_state alone
  Mask mask;
  // Values of the support in element order, in the state's dtype, from that of the first of the call on. Not
  // one is read or written past the last of the call.
  void* packed = nullptr;
  int8_t* packed_tail = nullptr;  // BF16T8
};

enum class Epilogue : uint8_t {
  store,  // C = A X
  add,    // C = C + A X   (the whole sum over k is made first)
};

// Rope, attention and friends work on one branch.
struct AttentionJob {
  const float* q;  // [n_heads * head_dim][ld], roped
  const float* k;  // [n_kv_heads * head_dim][ld], roped
  const float* v;  // [n_kv_heads * head_dim][ld]
  float* out;      // [n_heads * head_dim][ld]; may be q
  int64_t ld;
  int64_t head_dim;
  int64_t q_head, kv_head;
  // Queries are columns [start, start + len). Keys are columns [prefix_start, prefix_start + prefix_len),
  // then [start, ...] causally.
  int64_t start, len, prefix_start, prefix_len;
  int64_t window;  // sliding window: a query sees at most this many latest keys, itself included; 0: no limit
  float scale;     // 1 / sqrt(head_dim)
  float* scratch;  // attention_scratch_floats(head_dim, prefix_len + len) floats, aligned
};

// What a product sums over: an operand strip [n_rows][operand_ld(k)] and packed activations of k features.
// k = 0: nothing.
struct Terms {
  const void* strip = nullptr;
  int64_t k = 0;
  const void* packed = nullptr;
};

struct Kernels {
  const char* name;

  // Element type of an operand strip for a compute kind: BF16 (uint16_t) or F32 (bf16-rounded values held in
  // fp32 where the machine has no bf16 product).
  DType (*operand_dtype)(Compute);
  // Leading dimension, in elements, of an operand strip with K columns. Columns K..ld-1 are written as zeros
  // by `produce`.
  int64_t (*operand_ld)(Compute, int64_t k);
  // Bytes of a packed activation of K features and n_panels * 16 tokens.
  int64_t (*packed_bytes)(Compute, int64_t k, int64_t n_panels);

  // Operands of rows [row0, row0 + n_rows). nearest, dither: plus = branch +eps, minus = branch -eps (either
  // may be null). split: plus = Q(w), minus = m z. Strips are [n_rows][operand_ld].
  void (*produce)(const OperandJob&, int64_t row0, int64_t n_rows, void* plus, void* minus);
  // A record on rows [row0, row0 + n_rows) in place.
  void (*apply_update)(const UpdateJob&, int64_t row0, int64_t n_rows);
  // Stored elements [e0, e0 + n) -> fp32 (the full 24-bit value of BF16T8).
  void (*decode)(const WeightView&, int64_t e0, int64_t n, float* out);
  // A working copy's elements [e0, e0 + n). unpack_state makes them: of the base, rounded to nearest, and
  // then, if there is `packed`, those of the support of that. pack_state copies those of the support to
  // `packed`. count_state looks at base, mask and state.dtype alone. All return the elements of the support
  // (unpack_state without `packed`: 0).
  int64_t (*unpack_state)(const StateJob&, int64_t e0, int64_t n);
  int64_t (*pack_state)(const StateJob&, int64_t e0, int64_t n);
  int64_t (*count_state)(const StateJob&, int64_t e0, int64_t n);
  // Noise without mask of elements [e0, e0 + n), fp32.
  void (*noise)(const TensorDirection&, int64_t e0, int64_t n, float* out);

  // x: feature-major [k][ld] fp32 -> packed, panels [panel0, panel0 + n_panels) of it.
  void (*pack)(Compute, const float* x, int64_t ld, int64_t k, int64_t panel0, int64_t n_panels,
               void* packed);
  // C[n_rows][ldc] = alpha * (terms' strip times its packed activations + more's) of n_panels panels, by the
  // epilogue. Every element is one sum over k, going on over more's k, in the same order whatever n_rows,
  // n_panels and the position of the panel are.
  void (*gemm)(Compute, const Terms& terms, const Terms& more, int64_t n_rows, int64_t n_panels, float alpha,
               Epilogue, float* c, int64_t ldc);

  // C = A X of Compute::f32 where every sum is one chain of fma over k, from 0, in every set: what changes
  // weights must have the same bits everywhere. With root, of an Adam rule, C holds first moments already,
  // the sums are second ones, and C becomes over_root of both.
  void (*exact_gemm)(const Terms&, int64_t n_rows, int64_t n_panels, const Rule* root, float* c, int64_t ldc);

  // y = x / sqrt(mean(x^2) + eps) * gain, over features, for token columns of panels [panel0, panel0 +
  // n_panels).
  void (*rms_norm)(const float* x, int64_t ld, int64_t d, const float* gain, float eps, int64_t panel0,
                   int64_t n_panels, float* y);
  // Rotates rows i and i + rot/2 of one head (Hugging Face half layout) with cos, sin: [rot/2][ld].
  void (*rope)(float* head, int64_t ld, int64_t rot_dim, const float* cos, const float* sin, int64_t panel0,
               int64_t n_panels);
  void (*attention)(const AttentionJob&);
  // h = silu(gate) * up over n floats (gate and h may alias).
  void (*silu_mul)(const float* gate, const float* up, int64_t n, float* h);
  // silu_mul and rms_norm whose result goes straight into a packed activation of k features, as `pack` would
  // have rounded and laid it out; panels [panel0, panel0 + n_panels) of `packed`.
  // silu_mul_pack makes features [row0, row0 + n_rows) only: gate and up are [n_rows][ld] and begin with
  // feature row0 of panel panel0's first token. Both ends are even (or k), as pairs are stored together; the
  // call that makes the last feature also writes the padding.
  void (*silu_mul_pack)(Compute, const float* gate, const float* up, int64_t ld, int64_t k, int64_t row0,
                        int64_t n_rows, int64_t panel0, int64_t n_panels, void* packed);
  void (*rms_norm_pack)(Compute, const float* x, int64_t ld, int64_t k, const float* gain, float eps,
                        int64_t panel0, int64_t n_panels, void* packed);
  // Online log-sum-exp over rows of logits [n_rows][ld] for n_panels * 16 columns: max and sum [ld], updated
  // in row order.
  void (*lse_update)(const float* logits, int64_t n_rows, int64_t ld, int64_t n_panels, float* max,
                     float* sum);
};

int64_t attention_scratch_floats(int64_t head_dim, int64_t n_keys);

const Kernels& kernels_for(Isa isa);  // ArgumentError when this build or machine lacks it

}  // namespace smezo
