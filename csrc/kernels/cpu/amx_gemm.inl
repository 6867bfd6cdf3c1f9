// The product of bf16 operands on AMX tiles: 32 rows by 2 panels at a time, k in steps of 32. Included after
// amx_tile.h and gemm.inl inside the namespace of an instruction set.
//
// A packed panel [k / 2][16 tokens][2] is a column of B tiles as it lies, and 16 rows of a strip are a column
// of A tiles. Rows that fill no tile get a configuration with fewer rows, so nothing outside the strip is
// read. A row of C sums its own row of A in the same order whatever the tile's height (I12).
//
// The configuration is loaded per call and released at its end: another library in this thread may use tiles
// too, and would find its own gone, or we ours; a released state also spares the context switch 8 KiB.

template <class Tiles, bool two_rows, bool two_panels>
static void add_tiles(const TermsOf<uint16_t>& terms, int64_t row, int64_t panel) {
  const int64_t n_steps = (terms.k + 31) / 32, panel_size = n_steps * 32 * kLanes;
  const int64_t lda = terms.lda, a_stride = lda * 2;
  const uint16_t *a = terms.strip + row * lda, *b = terms.packed + panel * panel_size;
  for (int64_t s = 0; s < n_steps; ++s) {
    Tiles::template load<6>(b, 64);
    if constexpr (two_panels) Tiles::template load<7>(b + panel_size, 64);
    Tiles::template load<4>(a, a_stride);
    if constexpr (two_rows) Tiles::template load<5>(a + 16 * lda, a_stride);
    Tiles::template multiply<0, 4, 6>();
    if constexpr (two_panels) Tiles::template multiply<1, 4, 7>();
    if constexpr (two_rows) Tiles::template multiply<2, 5, 6>();
    if constexpr (two_rows && two_panels) Tiles::template multiply<3, 5, 7>();
    a += 32;
    b += 32 * kLanes;
  }
}

template <class Tiles, bool two_rows, bool two_panels>
static void tile_block(const TermsOf<uint16_t>& terms, const TermsOf<uint16_t>& more, int64_t row,
                       int64_t panel, float* sums) {
  Tiles::template zero<0>();
  if constexpr (two_panels) Tiles::template zero<1>();
  if constexpr (two_rows) Tiles::template zero<2>();
  if constexpr (two_rows && two_panels) Tiles::template zero<3>();
  add_tiles<Tiles, two_rows, two_panels>(terms, row, panel);
  if (more.k > 0) add_tiles<Tiles, two_rows, two_panels>(more, row, panel);
  constexpr int64_t stride = 2 * kLanes * 4;  // sums: [32 rows][2 panels * 16]
  Tiles::template store<0>(sums, stride);
  if constexpr (two_panels) Tiles::template store<1>(sums + kLanes, stride);
  if constexpr (two_rows) Tiles::template store<2>(sums + 16 * 2 * kLanes, stride);
  if constexpr (two_rows && two_panels) Tiles::template store<3>(sums + 16 * 2 * kLanes + kLanes, stride);
}

template <class Tiles>
static void multiply_tiles(const TermsOf<uint16_t>& terms, const TermsOf<uint16_t>& more, int64_t n_rows,
                           int64_t n_panels, float alpha, Epilogue epilogue, float* c, int64_t ldc) {
  alignas(64) float sums[32 * 2 * kLanes];
  const int64_t whole = n_rows / 32 * 32;
  // Rows outermost only between the whole tiles and the rest: each needs its own configuration.
  for (int part = 0; part < 2; ++part) {
    const int64_t begin = part == 0 ? 0 : whole, end = part == 0 ? whole : n_rows;
    if (begin == end) continue;
    const int rows = part == 0 ? 32 : static_cast<int>(end - begin);
    const int rows0 = rows < 16 ? rows : 16, rows1 = rows - rows0;
    alignas(64) const TileConfig config = tile_config(rows0, rows1);
    Tiles::configure(config);
    for (int64_t p = 0; p < n_panels; p += 2) {
      const bool two_panels = p + 1 < n_panels;
      for (int64_t r = begin; r < end; r += 32) {
        if (rows1 > 0) {
          if (two_panels)
            tile_block<Tiles, true, true>(terms, more, r, p, sums);
          else
            tile_block<Tiles, true, false>(terms, more, r, p, sums);
        } else {
          if (two_panels)
            tile_block<Tiles, false, true>(terms, more, r, p, sums);
          else
            tile_block<Tiles, false, false>(terms, more, r, p, sums);
        }
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t q = 0; q < (two_panels ? 2 : 1); ++q)
            finish(load(sums + (i * 2 + q) * kLanes), alpha, epilogue, c + (r + i) * ldc + (p + q) * kLanes);
      }
    }
    Tiles::release();
  }
}
