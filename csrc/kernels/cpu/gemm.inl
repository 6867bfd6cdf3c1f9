// The register-tiled product of an operand strip and packed activations, written once over vec.h. Included
// inside the namespace of an instruction set, after vec.h.
//
// An output element is one fp32 chain over k in increasing order: sum <- product_step(sum, a[k..], b[k..]).
// The tile's height and width, the block of k and the panel's place only decide which chains run side by
// side, never what one does (I12).
//
// Layout of a packed activation: [panel][k step][16 tokens][elements of a step]; a step is one k in fp32, a
// pair in bf16.

// A tile has at most kRows rows by kPanels panels, or kRowsOfOne rows by one panel: fewer chains than that
// would wait for their own sums.

// fp32 operands: one fused multiply-add per k.
struct FloatProduct {
  using Element = float;
  using Operand = F16;
  static constexpr int kStep = 1;
  static constexpr bool kRooted = false;
#if defined(__AVX512F__)
  static constexpr int kRows = 6, kPanels = 4, kRowsOfOne = 8;
#else
  static constexpr int kRows = 6, kPanels = 1, kRowsOfOne = 6;  // 12 of the 16 ymm registers are sums
#endif
  static constexpr int64_t kBlock =
      1024;  // elements of k: three panels of a block, and the strip, stay in L2
  SMEZO_VEC F16 broadcast(const float* a) { return set1(*a); }
  SMEZO_VEC F16 load_panel(const float* b) { return load(b); }
  SMEZO_VEC F16 product_step(F16 sum, F16 a, F16 b) { return fma(a, b, sum); }
};

// The same, whose finished sums are second moments of those in c (Kernels::exact_gemm).
struct RootedProduct : FloatProduct {
  static constexpr bool kRooted = true;
};

#if defined(__AVX512BF16__)
// bf16 operands: vdpbf16ps, a pair of k at a time (it flushes denormals and rounds in its own order; that is
// this set's definition).
struct PairProduct {
  using Element = uint16_t;
  using Operand = __m512i;
  static constexpr int kStep = 2;
  static constexpr bool kRooted = false;
  static constexpr int kRows = 6, kPanels = 4, kRowsOfOne = 8;
  static constexpr int64_t kBlock = 1536;
  SMEZO_VEC __m512i broadcast(const uint16_t* a) {
    int32_t pair;
    __builtin_memcpy(&pair, a, sizeof pair);
    return _mm512_set1_epi32(pair);
  }
  SMEZO_VEC __m512i load_panel(const uint16_t* b) { return _mm512_loadu_si512(b); }
  SMEZO_VEC F16 product_step(F16 sum, __m512i a, __m512i b) {
    return {_mm512_dpbf16_ps(sum.v, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b))};
  }
};
#endif

// Where the sums of a tile come from and go to. Sums of an unfinished k wait in `partial`; finished ones go
// to c.
struct TileEnd {
  float* partial;  // [rows][ld_partial]
  int64_t ld_partial;
  bool first, last;  // first: sums begin at zero; last: they are finished
  float* c;
  int64_t ldc;
  float alpha;
  Epilogue epilogue;
  const Rule* root;
  // Packed activations the driver wants next: every tile of a block asks for its share while it multiplies,
  // so that the first tile of the next block does not wait for them alone.
  const char* ahead;
  int64_t ahead_step;  // bytes per step, a fraction of the bytes of a step
};

// Terms of a tile's sums.
template <class P>
struct Steps {
  const typename P::Element* a;
  int64_t lda;
  const typename P::Element* b;
  int64_t panel_size;
  int64_t n;
};

SMEZO_VEC void finish(F16 sum, float alpha, Epilogue epilogue, float* c) {
  if (alpha != 1.0f) sum = sum * set1(alpha);
  store(c, epilogue == Epilogue::add ? load(c) + sum : sum);
}

template <class P, int R, int N, bool prefetches>
SMEZO_VEC void add_steps(const Steps<P>& s, const TileEnd& end, F16 (&sum)[R][N]) {
  const int64_t ahead_panel = s.panel_size * static_cast<int64_t>(sizeof(typename P::Element));
  const typename P::Element *a = s.a, *b = s.b;
  const char* ahead = end.ahead;
  for (int64_t i = 0; i < s.n; ++i) {
    if constexpr (prefetches) {
#pragma GCC unroll 4
      for (int p = 0; p < N; ++p) __builtin_prefetch(ahead + p * ahead_panel, 0, 2);
      ahead += end.ahead_step;
    }
    typename P::Operand panel[N];
#pragma GCC unroll 4
    for (int p = 0; p < N; ++p) panel[p] = P::load_panel(b + p * s.panel_size);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const typename P::Operand x = P::broadcast(a + r * s.lda);
#pragma GCC unroll 4
      for (int p = 0; p < N; ++p) sum[r][p] = P::product_step(sum[r][p], x, panel[p]);
    }
    a += P::kStep;
    b += P::kStep * kLanes;
  }
}

template <class P>
using TileFn = void (*)(const Steps<P>& steps, const Steps<P>& more, const TileEnd& end);

template <class P, int R, int N>
static void tile(const Steps<P>& steps, const Steps<P>& more, const TileEnd& end) {
  F16 sum[R][N];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int p = 0; p < N; ++p)
      sum[r][p] = end.first ? zero_f() : load(end.partial + r * end.ld_partial + p * kLanes);
  }
  if (end.last) {
    // The rows of c are long out of cache; they arrive while the tile is multiplied.
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int p = 0; p < N; ++p) __builtin_prefetch(end.c + r * end.ldc + p * kLanes, 1, 3);
    }
  }
  add_steps<P, R, N, true>(steps, end, sum);
  if (end.last && more.n > 0) add_steps<P, R, N, false>(more, end, sum);
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int p = 0; p < N; ++p) {
      if constexpr (P::kRooted) {
        if (end.last) sum[r][p] = over_root(*end.root, load(end.c + r * end.ldc + p * kLanes), sum[r][p]);
      }
      if (end.last)
        finish(sum[r][p], end.alpha, end.epilogue, end.c + r * end.ldc + p * kLanes);
      else
        store(end.partial + r * end.ld_partial + p * kLanes, sum[r][p]);
    }
  }
}

template <class P, int R>
constexpr int kMostPanels = R > P::kRows ? 1 : P::kPanels;

template <class P, int R = P::kRowsOfOne, int N = kMostPanels<P, R>>
static TileFn<P> tile_for(int rows, int panels) {
  if (rows == R && panels == N) return tile<P, R, N>;
  if constexpr (N > 1) {
    if (rows == R) return tile_for<P, R, N - 1>(rows, panels);
  }
  if constexpr (R > 1) return tile_for<P, R - 1>(rows, panels);
  return nullptr;
}

// Where part i begins of n items cut as evenly as possible: a thin last tile would wait for its own sums.
SMEZO_VEC int64_t part_begin(int64_t i, int64_t n, int64_t n_parts) { return i * n / n_parts; }

template <class P>
static void gemm_strip(const TermsOf<typename P::Element>& terms, const TermsOf<typename P::Element>& more,
                       int64_t n_rows, int64_t n_panels, float alpha, Epilogue epilogue, float* c,
                       int64_t ldc, const Rule* root = nullptr) {
  constexpr int64_t kChunk = 8 * P::kRows;  // rows whose unfinished sums fit on the stack
  alignas(64) float partial[kChunk * P::kPanels * kLanes];
  const int64_t n_steps = (terms.k + P::kStep - 1) / P::kStep;
  const int64_t panel_size = n_steps * P::kStep * kLanes;
  const int64_t n_more = (more.k + P::kStep - 1) / P::kStep, more_size = n_more * P::kStep * kLanes;
  constexpr int64_t kBlockSteps = P::kBlock / P::kStep;
  const int64_t n_groups = (n_panels + P::kPanels - 1) / P::kPanels;
  for (int64_t g = 0; g < n_groups; ++g) {
    const int64_t p0 = part_begin(g, n_panels, n_groups), np = part_begin(g + 1, n_panels, n_groups) - p0;
    for (int64_t row0 = 0; row0 < n_rows; row0 += kChunk) {
      const int64_t chunk = n_rows - row0 < kChunk ? n_rows - row0 : kChunk;
      const int64_t most_rows = np == 1 ? P::kRowsOfOne : P::kRows;
      const int64_t n_tiles = (chunk + most_rows - 1) / most_rows;
      for (int64_t s0 = 0; s0 < n_steps; s0 += kBlockSteps) {
        const int64_t steps = n_steps - s0 < kBlockSteps ? n_steps - s0 : kBlockSteps;
        const auto* now = terms.packed + p0 * panel_size + s0 * P::kStep * kLanes;
        // The next block of these panels, or the first of the next group; past the very end a prefetch is
        // harmless.
        const bool goes_on = s0 + steps < n_steps || row0 + chunk < n_rows;
        const auto* next = s0 + steps < n_steps ? now + steps * P::kStep * kLanes
                                                : terms.packed + (goes_on ? p0 : p0 + np) * panel_size;
        const int64_t ahead_step = 64 / n_tiles;
        for (int64_t t = 0; t < n_tiles; ++t) {
          const int64_t r0 = part_begin(t, chunk, n_tiles), nr = part_begin(t + 1, chunk, n_tiles) - r0;
          const TileEnd end{partial + r0 * P::kPanels * kLanes,
                            P::kPanels * kLanes,
                            s0 == 0,
                            s0 + steps == n_steps,
                            c + (row0 + r0) * ldc + p0 * kLanes,
                            ldc,
                            alpha,
                            epilogue,
                            root,
                            reinterpret_cast<const char*>(next) + t * ahead_step * steps,
                            ahead_step};
          const int64_t row = row0 + r0;
          tile_for<P>(static_cast<int>(nr), static_cast<int>(np))(
              {terms.strip + row * terms.lda + s0 * P::kStep, terms.lda, now, panel_size, steps},
              {more.strip + row * more.lda, more.lda, more.packed + p0 * more_size, more_size, n_more}, end);
        }
      }
    }
  }
}
