// Causal attention of one head over one segment: a lane is a query. Included inside the namespace of an
// instruction set, after activations.inl.
//
// Keys are counted from 0 over prefix then segment, queries from the segment's start; blocks of both are cut
// from there, so a query's result depends on its own segment only, not on where it lies in the packed tokens
// (I12). Keys and values are first gathered into scratch: that joins prefix and segment, ends every block of
// keys with zeros, and puts rows apart by something other than a power of two (16 rows of a wide activation
// would fall into one set of the first cache).
//
//   scores  s[j][lane]   one chain over head_dim in order; masked: -inf
//   p       e^(s - max)  and their sum, keys in order; a masked key adds exactly 0
//   out     one chain over keys in order, times 1 / sum
//
// Scratch: k and v [head_dim][stride], q [head_dim][16], s [keys][16]; keys = n_keys rounded up to 16, stride
// = keys | 16.

#if defined(__AVX512F__)
constexpr int kAttentionBlock =
    16;  // sums in registers: keys of a score block, dimensions of an output block
#else
constexpr int kAttentionBlock = 4;
#endif

SMEZO_VEC int64_t attention_stride(int64_t keys) { return keys | 16; }

// Columns [prefix_start, +prefix_len) then [start, +len) of head_dim rows, zeros up to `stride`.
SMEZO_VEC void gather(const AttentionJob& j, const float* from, int64_t stride, float* to) {
  for (int64_t d = 0; d < j.head_dim; ++d) {
    const float* row = from + (j.kv_head * j.head_dim + d) * j.ld;
    float* out = to + d * stride;
    for (int part = 0; part < 2; ++part) {
      const float* src = row + (part == 0 ? j.prefix_start : j.start);
      const int64_t n = part == 0 ? j.prefix_len : j.len;
      int64_t i = 0;
      for (; i + kLanes <= n; i += kLanes) store(out + i, load(src + i));
      if (i < n) store_n(out + i, load_n(src + i, static_cast<int>(n - i)), static_cast<int>(n - i));
      out += n;
    }
    for (float* end = to + (d + 1) * stride; out < end; ++out) *out = 0.0f;
  }
}

// out[i] = sum over n of many[i * many_step + s * one_step] broadcast times lanes[s]: N chains side by side.
template <int N>
SMEZO_VEC void chains(const float* lanes, int64_t n, const float* many, int64_t many_step, int64_t one_step,
                      F16* out) {
  F16 sum[N];
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) sum[i] = zero_f();
  for (int64_t s = 0; s < n; ++s) {
    const F16 x = load(lanes + s * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) sum[i] = fma(x, set1(many[i * many_step + s * one_step]), sum[i]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) out[i] = sum[i];
}

template <int N>
SMEZO_VEC void output_rows(const float* p, int64_t n_keys, const float* v, int64_t stride, F16 scale,
                           float* out, int64_t ld, int n) {
  F16 sum[N];
  chains<N>(p, n_keys, v, stride, 1, sum);
  for (int i = 0; i < N; ++i) store_n(out + i * ld, sum[i] * scale, n);
}

static void attention(const AttentionJob& j) {
  const int64_t n_keys = j.prefix_len + j.len, window = j.window < n_keys ? j.window : 0;
  const int64_t keys = (n_keys + 15) / 16 * 16, stride = attention_stride(keys);
  float* k = j.scratch;
  float* v = k + j.head_dim * stride;
  float* q = v + j.head_dim * stride;
  float* s = q + j.head_dim * kLanes;
  gather(j, j.k, stride, k);
  gather(j, j.v, stride, v);

  for (int64_t q0 = 0; q0 < j.len; q0 += kLanes) {
    const int n = static_cast<int>(j.len - q0 < kLanes ? j.len - q0 : kLanes);
    const int64_t column = j.start + q0;
    for (int64_t d = 0; d < j.head_dim; ++d)
      store(q + d * kLanes, load_n(j.q + (j.q_head * j.head_dim + d) * j.ld + column, n));

    const int64_t at = j.prefix_len + q0;  // the key that is lane 0's own
    const int64_t end = at + n;            // keys any lane of the block may see
    int64_t begin = 0;
    if (window > 0 && at + 1 > window) begin = (at + 1 - window) / kAttentionBlock * kAttentionBlock;
    const int64_t blocks = (end - begin + kAttentionBlock - 1) / kAttentionBlock;
    const U16 own = lane_index() + set1(static_cast<uint32_t>(at));
    const U16 oldest = own - set1(static_cast<uint32_t>(window - 1));
    F16 top = set1(-__builtin_inff());
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t key0 = begin + b * kAttentionBlock;
      F16 score[kAttentionBlock];
      chains<kAttentionBlock>(q, j.head_dim, k + key0, 1, stride, score);
      const bool all_seen =
          key0 + kAttentionBlock <= at + 1 && (window == 0 || key0 + window > at + kLanes - 1);
      for (int i = 0; i < kAttentionBlock; ++i) {
        F16 x = score[i] * set1(j.scale);
        if (!all_seen) {
          const U16 key = set1(static_cast<uint32_t>(key0 + i));
          M16 hidden = less_signed(own, key);
          if (window > 0) hidden = mask_or(hidden, less_signed(key, oldest));
          x = select(hidden, set1(-__builtin_inff()), x);
        }
        top = max(top, x);
        store(s + (key0 - begin + i) * kLanes, x);
      }
    }

    F16 sum = zero_f();
    for (int64_t i = 0; i < blocks * kAttentionBlock; ++i) {
      const F16 p = exp(load(s + i * kLanes) - top);
      sum = sum + p;
      store(s + i * kLanes, p);
    }
    const F16 scale = set1(1.0f) / sum;
    float* out = j.out + j.q_head * j.head_dim * j.ld + column;
    int64_t d = 0;
    for (; d + kAttentionBlock <= j.head_dim; d += kAttentionBlock)
      output_rows<kAttentionBlock>(s, end - begin, v + d * stride + begin, stride, scale, out + d * j.ld,
                                   j.ld, n);
    for (; d < j.head_dim; ++d)
      output_rows<1>(s, end - begin, v + d * stride + begin, stride, scale, out + d * j.ld, j.ld, n);
  }
}
