// Noise and other random bits, 16 blocks at a time: lane = block, so each output word is a vector of
// consecutive elements (noise/address.h) and nothing is transposed. Formulas and tables are those of noise/;
// only gaussian8's table look-up is written here, for the width of the machine. Included after vec.h inside
// the namespace of an instruction set.
//
// Elements are worked on a window at a time. A buffer holds one window: its entry 0 is the window's first
// element. Fills write whole groups, so entries around the range asked for are overwritten too.
#pragma once

constexpr int kWindow =
    2048;  // elements; a multiple of every group size, and small enough that buffers stay in L1

SMEZO_VEC uint64_t window_of(uint64_t e) { return e / kWindow * kWindow; }

struct Words {
  U16 w[4];
};

// The 16 blocks of one group.
SMEZO_VEC Words words_at(const Stream& s, uint64_t group) {
  const Counter c = counter_of(s, group * 16);
  Wide16 c0 = widen(U16(c.c0) + lane_index()), c1(c.c1), c2(c.c2), c3(c.c3);
  philox_lanes(c0, c1, c2, c3, key_of(s));
  return {{narrow(c0), narrow(c1), narrow(c2), narrow(c3)}};
}

// body(words, the group's place in a window buffer) for every group that touches [e0, e0 + n), a range inside
// one window.
template <uint64_t group_size, class Body>
SMEZO_VEC void for_groups(const Stream& s, uint64_t e0, int64_t n, Body&& body) {
  const uint64_t window = window_of(e0), last = (e0 + static_cast<uint64_t>(n) - 1) / group_size;
  for (uint64_t g = e0 / group_size; g <= last; ++g) body(words_at(s, g), g * group_size - window);
}

// The `bits` (8 or 16) random bits of each element, one to a word.
template <int bits>
static void fill_bits(const Stream& s, uint64_t e0, int64_t n, uint32_t* buffer) {
  for_groups<2048 / bits>(s, e0, n, [&](const Words& b, uint64_t at) {
    uint32_t* p = buffer + at;
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
#pragma GCC unroll 4
      for (int first = 0; first < 32; first += bits, p += 16)
        store(p, (b.w[j] >> first) & set1((1u << bits) - 1));
    }
  });
}

static void fill_gaussian(const Stream& s, uint64_t e0, int64_t n, float* buffer) {
  for_groups<64>(s, e0, n, [&](const Words& b, uint64_t at) {
    F16 z[4];
    gaussian_pair<F16, U16>(b.w[0], b.w[1], &z[0], &z[1]);
    gaussian_pair<F16, U16>(b.w[2], b.w[3], &z[2], &z[3]);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) store(buffer + at + 16 * j, z[j]);
  });
}

static void fill_rademacher(const Stream& s, uint64_t e0, int64_t n, float* buffer) {
  const uint64_t window = window_of(e0);
  const int first = static_cast<int>(e0 - window) / 16;
  const int last =
      static_cast<int>(e0 - window + static_cast<uint64_t>(n) - 1) / 16;  // chunk = bit of the block
  for_groups<2048>(s, e0, n, [&](const Words& b, uint64_t) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const int begin = first > 32 * j ? first - 32 * j : 0, end = last < 32 * j + 31 ? last - 32 * j : 31;
      float* p = buffer + 512 * j;
      for (int bit = begin; bit <= end; ++bit)
        store(p + 16 * bit, as_f((b.w[j] >> bit) << 31 | set1(0x3F800000u)));
    }
  });
}

#if defined(__AVX512F__)
// Two table look-ups give the high and the low byte of the bf16 value of all 64 bytes of a word vector (bit 7
// of an index is not read; it is the sign). Then each dword takes the two bytes of its slot.
static void fill_gaussian8(const Stream& s, uint64_t e0, int64_t n, float* buffer) {
  __m512i low[2], high[2], spread[4];
  const __m512i even_bytes = _mm512_set1_epi16(0xFF);
  for (int half = 0; half < 2; ++half) {
    const __m512i a = _mm512_loadu_si512(kGaussian8 + 64 * half),
                  b = _mm512_loadu_si512(kGaussian8 + 64 * half + 32);
    const auto bytes = [](__m512i x, __m512i y) {  // low bytes of 2 x 32 words
      return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi16_epi8(x)), _mm512_cvtepi16_epi8(y), 1);
    };
    low[half] = bytes(_mm512_and_si512(a, even_bytes), _mm512_and_si512(b, even_bytes));
    high[half] = bytes(_mm512_srli_epi16(a, 8), _mm512_srli_epi16(b, 8));
  }
  for (int b = 0; b < 4; ++b) {
    const U16 byte = (lane_index() << 2) + set1(static_cast<uint32_t>(b));
    spread[b] = ((byte << 16) | ((byte + set1(64u)) << 24)).v;
  }
  for_groups<256>(s, e0, n, [&](const Words& w, uint64_t at) {
    float* p = buffer + at;
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const __m512i lo = _mm512_permutex2var_epi8(low[0], w.w[j].v, low[1]);
      const __m512i magnitude = _mm512_permutex2var_epi8(high[0], w.w[j].v, high[1]);
      const __m512i hi =
          _mm512_ternarylogic_epi32(magnitude, w.w[j].v, _mm512_set1_epi8(-128), 0xF8);  // a | (b & c)
#pragma GCC unroll 4
      for (int b = 0; b < 4; ++b, p += 16) {
        store(p, as_f(U16(_mm512_maskz_permutex2var_epi8(0xCCCCCCCCCCCCCCCCull, lo, spread[b], hi))));
      }
    }
  });
}
#else
// The 128 entries of a byte table at the low 7 bits of every byte: eight shuffles of 16 entries, chosen
// between by bits 4 to 6. Not a gather: on machines whose microcode guards against data sampling that takes
// several times as long.
SMEZO_VEC __m256i look_up(const uint8_t* table, __m256i at) {
  const __m256i low = _mm256_and_si256(at, _mm256_set1_epi8(15));
  const __m256i bit[3] = {_mm256_slli_epi16(at, 3), _mm256_slli_epi16(at, 2), _mm256_slli_epi16(at, 1)};
  __m256i v[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const __m128i part = _mm_load_si128(reinterpret_cast<const __m128i*>(table + 16 * i));
    v[i] = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(part), low);
  }
  for (int i = 0; i < 4; ++i) v[i] = _mm256_blendv_epi8(v[2 * i], v[2 * i + 1], bit[0]);
  for (int i = 0; i < 2; ++i) v[i] = _mm256_blendv_epi8(v[2 * i], v[2 * i + 1], bit[1]);
  return _mm256_blendv_epi8(v[0], v[1], bit[2]);
}

static void fill_gaussian8(const Stream& s, uint64_t e0, int64_t n, float* buffer) {
  alignas(32) uint8_t low[kGaussian8Size], high[kGaussian8Size];
  for (int i = 0; i < kGaussian8Size; ++i) {
    low[i] = static_cast<uint8_t>(kGaussian8[i]);
    high[i] = static_cast<uint8_t>(kGaussian8[i] >> 8);
  }
  const __m256i sign = _mm256_set1_epi8(-128);
  const __m256i first_byte = _mm256_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12);
  for_groups<256>(s, e0, n, [&](const Words& w, uint64_t at) {
    float* p = buffer + at;
    for (int j = 0; j < 8; ++j) {
      const __m256i word = j & 1 ? w.w[j / 2].b : w.w[j / 2].a;
      const __m256i lo = look_up(low, word),
                    hi = _mm256_or_si256(look_up(high, word), _mm256_and_si256(word, sign));
#pragma GCC unroll 4
      for (int b = 0; b < 4; ++b) {  // byte b of every word: lo's to byte 2, hi's to byte 3
        const __m256i from =
            _mm256_add_epi32(first_byte, _mm256_set1_epi32(b));  // index bytes of 0x80 give zero
        const __m256i lo_at =
            _mm256_or_si256(_mm256_slli_epi32(from, 16), _mm256_set1_epi32(static_cast<int>(0x80008080u)));
        const __m256i hi_at = _mm256_or_si256(_mm256_slli_epi32(from, 24), _mm256_set1_epi32(0x00808080));
        const __m256i z = _mm256_or_si256(_mm256_shuffle_epi8(lo, lo_at), _mm256_shuffle_epi8(hi, hi_at));
        _mm256_store_ps(p + 64 * (j / 2) + 16 * b + 8 * (j & 1), _mm256_castsi256_ps(z));
      }
    }
  });
}
#endif

// Noise of [e0, e0 + n), a range inside one window, without its mask.
static void fill_noise(NoiseKind kind, const Stream& s, uint64_t e0, int64_t n, float* buffer) {
  switch (kind) {
    case NoiseKind::gaussian:
      return fill_gaussian(s, e0, n, buffer);
    case NoiseKind::gaussian8:
      return fill_gaussian8(s, e0, n, buffer);
    case NoiseKind::rademacher:
      return fill_rademacher(s, e0, n, buffer);
  }
}

// Calls body(e, n) for the pieces of [e0, e0 + n) that lie in one window each.
template <class Body>
SMEZO_VEC void for_windows(uint64_t e0, int64_t n, Body&& body) {
  for (int64_t done = 0; done < n;) {
    const uint64_t e = e0 + static_cast<uint64_t>(done);
    const int64_t left = kWindow - static_cast<int64_t>(e - window_of(e));
    const int64_t piece = left < n - done ? left : n - done;
    body(e, piece);
    done += piece;
  }
}

static void noise_range(const TensorDirection& d, int64_t e0, int64_t n, float* out) {
  alignas(64) float z[kWindow];
  for_windows(static_cast<uint64_t>(e0), n, [&](uint64_t e, int64_t piece) {
    fill_noise(d.noise, d.stream, e, piece, z);
    memcpy(out + (e - static_cast<uint64_t>(e0)), z + (e - window_of(e)),
           static_cast<size_t>(piece) * sizeof(float));
  });
}
