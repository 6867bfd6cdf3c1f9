// The AMX tile instructions (Intel Architecture Instruction Set Extensions, AMX-TILE and AMX-BF16) behind one
// small interface, twice: as the machine has them, and emulated in plain C++ from the documented semantics,
// so that the product around them runs and is tested anywhere. Included inside the namespace of an
// instruction set.
//
// Tiles 0..3 are the sums C00 C01 C10 C11, 4 and 5 the operands A0 A1, 6 and 7 the activations B0 B1. Every
// row has 64 bytes; A0 (C00, C01) has rows0 rows, A1 (C10, C11) rows1, and the activations 16 rows of pairs.
#pragma once

struct TileConfig {  // the memory image ldtilecfg reads
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

static inline TileConfig tile_config(int rows0, int rows1) {
  TileConfig t;
  for (int i = 0; i < 8; ++i) {
    const int rows = i >= 6 ? 16 : i == 4 || i < 2 ? rows0 : rows1;
    t.rows[i] = static_cast<uint8_t>(rows);
    t.row_bytes[i] = rows > 0 ? 64 : 0;
  }
  return t;
}

#if defined(__AMX_BF16__)
// Assembly, because the compiler's intrinsics take literals only.
struct HardwareTiles {
  static inline void configure(const TileConfig& t) { asm volatile("ldtilecfg %0" ::"m"(t)); }
  static inline void release() { asm volatile("tilerelease"); }
  template <int T>
  static inline __attribute__((always_inline)) void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(T));
  }
  template <int T>
  static inline __attribute__((always_inline)) void load(const void* p, int64_t stride_bytes) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride_bytes), "i"(T) : "memory");
  }
  template <int T>
  static inline __attribute__((always_inline)) void store(void* p, int64_t stride_bytes) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride_bytes), "i"(T) : "memory");
  }
  // C += A B, per row of A and column of B over 16 pairs of elements.
  template <int C, int A, int B>
  static inline __attribute__((always_inline)) void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
};
#endif

// TDPBF16PS as documented: even and odd elements have a sum each over the 16 pairs, fused multiply-adds from
// zero, which are added and then added to C; denormal inputs count as zero, denormal results become zero.
struct EmulatedTiles {
  struct State {
    TileConfig config;
    bool configured = false;
    uint8_t data[8][16][64];
  };
  static State& state() {
    static thread_local State s;
    return s;
  }
  static void configure(const TileConfig& t) {
    state().config = t;
    state().configured = true;
    for (auto& tile : state().data) memset(tile, 0, sizeof tile);
  }
  static void release() { state().configured = false; }
  static int rows(int tile) { return state().configured ? state().config.rows[tile] : 0; }
  template <int T>
  static void zero() {
    memset(state().data[T], 0, sizeof state().data[T]);
  }
  template <int T>
  static void load(const void* p, int64_t stride_bytes) {
    for (int r = 0; r < rows(T); ++r)
      memcpy(state().data[T][r], static_cast<const char*>(p) + r * stride_bytes, 64);
  }
  template <int T>
  static void store(void* p, int64_t stride_bytes) {
    for (int r = 0; r < rows(T); ++r)
      memcpy(static_cast<char*>(p) + r * stride_bytes, state().data[T][r], 64);
  }
  static float bf16(const uint8_t* p) {
    uint16_t h;
    memcpy(&h, p, 2);
    if ((h & 0x7F80) == 0) h &= 0x8000;
    const uint32_t u = static_cast<uint32_t>(h) << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
  }
  static float flushed(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    if ((u & 0x7F800000) == 0) u &= 0x80000000;
    memcpy(&f, &u, 4);
    return f;
  }
  template <int C, int A, int B>
  static void multiply() {
    State& s = state();
    for (int m = 0; m < rows(C); ++m) {
      for (int n = 0; n < 16; ++n) {
        float part[2] = {0, 0}, sum;  // even and odd elements
        for (int pair = 0; pair < 16; ++pair)
          for (int odd = 0; odd < 2; ++odd)
            part[odd] = flushed(__builtin_fmaf(bf16(s.data[A][m] + 4 * pair + 2 * odd),
                                               bf16(s.data[B][pair] + 4 * n + 2 * odd), part[odd]));
        memcpy(&sum, s.data[C][m] + 4 * n, 4);
        sum = flushed(flushed(sum) + flushed(part[0] + part[1]));
        memcpy(s.data[C][m] + 4 * n, &sum, 4);
      }
    }
  }
};
