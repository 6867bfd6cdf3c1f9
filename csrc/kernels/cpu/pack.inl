// Feature-major fp32 -> packed activation (layout in gemm.inl), with whatever makes the values on the way: a
// plain copy, the normalisation, the gated product. Included inside the namespace of an instruction set,
// after vec.h; kBf16Operands says whether Compute::bf16 is stored as bf16 pairs (else as bf16-rounded fp32),
// kPairPadding to how many elements of k pairs are padded.
//
// Panels are made four at a time: a pass over the features then reads four neighbouring lines of every row.

constexpr int kPackGroup = 4;

SMEZO_VEC bool stores_pairs(Compute compute) { return kBf16Operands && compute == Compute::bf16; }

SMEZO_VEC int64_t packed_steps(Compute compute, int64_t k) {
  return stores_pairs(compute) ? (k + kPairPadding - 1) / kPairPadding * kPairPadding : k;
}

static DType operand_dtype(Compute compute) { return stores_pairs(compute) ? DType::BF16 : DType::F32; }

// Rows a multiple of 512 bytes apart would share few sets of the first cache; one line more spreads them.
static int64_t operand_ld(Compute compute, int64_t k) {
  const int64_t ld = packed_steps(compute, k), size = stores_pairs(compute) ? 2 : 4;
  return ld * size % 512 == 0 ? ld + 64 / size : ld;
}

static int64_t packed_bytes(Compute compute, int64_t k, int64_t n_panels) {
  return packed_steps(compute, k) * n_panels * kLanes * (stores_pairs(compute) ? 2 : 4);
}

// Features [begin, end) of k; begin is even, end too unless it is k.
struct PackRows {
  int64_t k, begin, end;
};

// value(i, p): feature i of panel p (counted from the first of the group, panel `first`), 16 tokens.
template <class Value>
SMEZO_VEC void pack_group(Compute compute, PackRows rows, int64_t first, int n, void* packed,
                          const Value& value) {
  const int64_t k = rows.k, end = rows.end;
  if (stores_pairs(compute)) {
    const int64_t steps = packed_steps(compute, k) / 2;
    uint32_t* out = static_cast<uint32_t*>(packed) + first * steps * kLanes;
    for (int64_t s = rows.begin / 2; s < end / 2; ++s)
      for (int p = 0; p < n; ++p)
        store(out + (p * steps + s) * kLanes,
              (bf16_high(value(2 * s, p)) >> 16) | (bf16_high(value(2 * s + 1, p)) & set1(0xFFFF0000u)));
    if (end < k) return;
    if (k % 2 != 0)
      for (int p = 0; p < n; ++p) store(out + (p * steps + k / 2) * kLanes, bf16_high(value(k - 1, p)) >> 16);
    for (int64_t s = (k + 1) / 2; s < steps; ++s)
      for (int p = 0; p < n; ++p) store(out + (p * steps + s) * kLanes, zero_u());
    return;
  }
  float* out = static_cast<float*>(packed) + first * k * kLanes;
  for (int64_t i = rows.begin; i < end; ++i)
    for (int p = 0; p < n; ++p) {
      const F16 x = value(i, p);
      store(out + (p * k + i) * kLanes, compute == Compute::bf16 ? round_bf16(x) : x);
    }
}

// body(first panel, number of panels) over groups of at most kPackGroup.
template <class Body>
SMEZO_VEC void for_panel_groups(int64_t panel0, int64_t n_panels, const Body& body) {
  for (int64_t p = panel0; p < panel0 + n_panels; p += kPackGroup) {
    const int64_t left = panel0 + n_panels - p;
    body(p, static_cast<int>(left < kPackGroup ? left : kPackGroup));
  }
}

static void pack(Compute compute, const float* x, int64_t ld, int64_t k, int64_t panel0, int64_t n_panels,
                 void* packed) {
  for_panel_groups(panel0, n_panels, [&](int64_t first, int n) {
    const float* at = x + first * kLanes;
    pack_group(compute, {k, 0, k}, first, n, packed, [&](int64_t i, int p) __attribute__((always_inline)) {
      return load(at + i * ld + p * kLanes);
    });
  });
}

static void silu_mul_pack(Compute compute, const float* gate, const float* up, int64_t ld, int64_t k,
                          int64_t row0, int64_t n_rows, int64_t panel0, int64_t n_panels, void* packed) {
  for_panel_groups(panel0, n_panels, [&](int64_t first, int n) {
    const PackRows rows{k, row0, row0 + n_rows};
    pack_group(compute, rows, first, n, packed, [&](int64_t i, int p) __attribute__((always_inline)) {
      const int64_t at = (i - row0) * ld + (first - panel0 + p) * kLanes;
      return silu(load(gate + at)) * load(up + at);
    });
  });
}

static void rms_norm_pack(Compute compute, const float* x, int64_t ld, int64_t k, const float* gain,
                          float eps, int64_t panel0, int64_t n_panels, void* packed) {
  for_panel_groups(panel0, n_panels, [&](int64_t first, int n) {
    const float* at = x + first * kLanes;
    F16 scale[kPackGroup];
    rms_scales(at, ld, k, eps, n, scale);
    pack_group(compute, {k, 0, k}, first, n, packed, [&](int64_t i, int p) __attribute__((always_inline)) {
      return load(at + i * ld + p * kLanes) * scale[p] * set1(gain[i]);
    });
  });
}
