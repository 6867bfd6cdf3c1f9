// The one place where lanes move: values that lie side by side in memory to the lanes of a set, and back.
// Included after elements.inl inside the namespace of an instruction set.
//
// Whole: expand_from reads, and compress_to writes, anything up to 16 elements, whatever the set. Part: no
// more than its n, which is at least what the set has.
#pragma once

#if defined(__AVX512F__)

SMEZO_VEC M16 lanes_of(uint32_t set) { return {static_cast<__mmask16>(set)}; }

SMEZO_VEC U16 load_packed(const float* p) { return as_u(load(p)); }
SMEZO_VEC U16 load_packed(const uint16_t* p) { return load_u16(p); }
SMEZO_VEC U16 load_packed(const int8_t* p) { return load_i8(p); }
SMEZO_VEC void store_packed(float* p, U16 x) { store(p, as_f(x)); }
SMEZO_VEC void store_packed(uint16_t* p, U16 x) { store_u16(p, x); }
SMEZO_VEC void store_packed(int8_t* p, U16 x) { store_i8(p, x); }

template <class T>
SMEZO_VEC U16 expand_from(const T* p, uint32_t set, Whole) {
  return {_mm512_maskz_expand_epi32(lanes_of(set).m, load_packed(p).v)};
}
template <class T>
SMEZO_VEC void compress_to(T* p, U16 x, uint32_t set, Whole) {
  store_packed(p, U16(_mm512_maskz_compress_epi32(lanes_of(set).m, x.v)));  // to memory it is slow on Zen 4
}

#else

SMEZO_VEC M16 lanes_of(uint32_t set) {
  const __m256i all = _mm256_set1_epi32(static_cast<int>(set)), one = _mm256_set1_epi32(1);
  const U16 bit(_mm256_sllv_epi32(one, lane_index().a), _mm256_sllv_epi32(one, lane_index().b));
  return {_mm256_cmpeq_epi32(_mm256_and_si256(all, bit.a), bit.a),
          _mm256_cmpeq_epi32(_mm256_and_si256(all, bit.b), bit.b)};
}

// Of each set of 8 lanes: how many of it lie before a lane, and its lanes in order.
struct Permutations {
  uint8_t rank[256][8] = {}, lane[256][8] = {};
  constexpr Permutations() {
    for (int set = 0; set < 256; ++set) {
      int n = 0;
      for (int i = 0; i < 8; ++i) {
        rank[set][i] = static_cast<uint8_t>(n);
        if (set >> i & 1) lane[set][n++] = static_cast<uint8_t>(i);
      }
    }
  }
};
static constexpr Permutations kPermutations;

SMEZO_VEC __m256i permuted(__m256i x, const uint8_t* index) {
  return _mm256_permutevar8x32_epi32(
      x, _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(index))));
}

// Eight at a time.
SMEZO_VEC __m256i load_packed(const float* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
SMEZO_VEC __m256i load_packed(const uint16_t* p) {
  return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
SMEZO_VEC __m256i load_packed(const int8_t* p) {
  return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
SMEZO_VEC void store_packed(float* p, __m256i x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
SMEZO_VEC void store_packed(uint16_t* p, __m256i x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(low_halves(U16(x, x))));
}
SMEZO_VEC void store_packed(int8_t* p, __m256i x) {
  const __m128i h = _mm256_castsi256_si128(low_halves(U16(x, x)));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p),
                   _mm_packus_epi16(_mm_and_si128(h, _mm_set1_epi16(0xFF)), _mm_setzero_si128()));
}

template <class T>
SMEZO_VEC U16 expand_from(const T* p, uint32_t set, Whole) {
  const uint32_t low = set & 255, high = set >> 8;
  return {permuted(load_packed(p), kPermutations.rank[low]),
          permuted(load_packed(p + __builtin_popcount(low)), kPermutations.rank[high])};
}
template <class T>
SMEZO_VEC void compress_to(T* p, U16 x, uint32_t set, Whole) {
  const uint32_t low = set & 255, high = set >> 8;
  store_packed(p, permuted(x.a, kPermutations.lane[low]));
  store_packed(p + __builtin_popcount(low), permuted(x.b, kPermutations.lane[high]));
}

#endif

template <class T>
SMEZO_VEC U16 expand_from(const T* p, uint32_t set, Part l) {
  alignas(64) T t[16] = {};
  __builtin_memcpy(t, p, static_cast<size_t>(l.n) * sizeof(T));
  return expand_from(t, set, Whole{});
}
template <class T>
SMEZO_VEC void compress_to(T* p, U16 x, uint32_t set, Part l) {
  alignas(64) T t[16];
  compress_to(t, x, set, Whole{});
  __builtin_memcpy(p, t, static_cast<size_t>(l.n) * sizeof(T));
}
