// Sixteen 32-bit lanes: F16 (fp32), U16 (uint32) and M16 (a mask), one zmm register under AVX-512, two ymm
// under AVX2. Kernels are written once over these and compiled per instruction set. The file is included
// inside `namespace smezo { namespace <isa> {` after <immintrin.h>; everything is static and always inlined,
// so no symbol leaves the object file.
//
// Lane-wise only: nothing here mixes lanes, except load/store, which put lane i at element i.
#pragma once

#define SMEZO_VEC static inline __attribute__((always_inline))
#define SMEZO_CTOR __attribute__((always_inline))

constexpr int kVecLanes = 16;

#if defined(__AVX512F__)

struct F16 {
  __m512 v;
  F16() = default;
  SMEZO_CTOR F16(__m512 x) : v(x) {}
  SMEZO_CTOR explicit F16(float x) : v(_mm512_set1_ps(x)) {}
};
struct U16 {
  __m512i v;
  U16() = default;
  SMEZO_CTOR U16(__m512i x) : v(x) {}
  SMEZO_CTOR explicit U16(uint32_t x) : v(_mm512_set1_epi32(static_cast<int>(x))) {}
};
struct M16 {
  __mmask16 m;
};

SMEZO_VEC M16 first_lanes(int n) { return {static_cast<__mmask16>((1u << n) - 1)}; }  // n in 0..16
SMEZO_VEC M16 mask_and(M16 a, M16 b) { return {static_cast<__mmask16>(a.m & b.m)}; }
SMEZO_VEC M16 mask_or(M16 a, M16 b) { return {static_cast<__mmask16>(a.m | b.m)}; }
SMEZO_VEC M16 mask_not(M16 a) { return {static_cast<__mmask16>(~a.m)}; }
SMEZO_VEC uint32_t mask_bits(M16 a) { return a.m; }

SMEZO_VEC U16 lane_index() {
  return {_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)};
}
SMEZO_VEC F16 as_f(U16 a) { return {_mm512_castsi512_ps(a.v)}; }
SMEZO_VEC U16 as_u(F16 a) { return {_mm512_castps_si512(a.v)}; }

SMEZO_VEC F16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
SMEZO_VEC U16 load(const uint32_t* p) { return {_mm512_loadu_si512(p)}; }
SMEZO_VEC void store(float* p, F16 a) { _mm512_storeu_ps(p, a.v); }
SMEZO_VEC void store(uint32_t* p, U16 a) { _mm512_storeu_si512(p, a.v); }
// Partial: the first n lanes; the others read as zero and are not touched in memory.
SMEZO_VEC F16 load_n(const float* p, int n) { return {_mm512_maskz_loadu_ps(first_lanes(n).m, p)}; }
SMEZO_VEC void store_n(float* p, F16 a, int n) { _mm512_mask_storeu_ps(p, first_lanes(n).m, a.v); }
// 16-bit and 8-bit memory: widened by zeros (bytes: by their sign); stores keep the low bits of every lane.
SMEZO_VEC U16 load_u16(const uint16_t* p) {
  return {_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
SMEZO_VEC U16 load_u16_n(const uint16_t* p, int n) {
  return {_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first_lanes(n).m, p))};
}
SMEZO_VEC U16 load_i8(const int8_t* p) {
  return {_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
SMEZO_VEC U16 load_i8_n(const int8_t* p, int n) {
  return {_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(first_lanes(n).m, p))};
}
SMEZO_VEC void store_u16(uint16_t* p, U16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(a.v));
}
SMEZO_VEC void store_u16_n(uint16_t* p, U16 a, int n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n).m, _mm512_cvtepi32_epi16(a.v));
}
// The high halves of the lanes.
SMEZO_VEC void store_high16(uint16_t* p, U16 a) { store_u16(p, {_mm512_srli_epi32(a.v, 16)}); }
SMEZO_VEC __m512i odd_words() {
  return _mm512_add_epi16(_mm512_set1_epi32(0x00030001),
                          _mm512_mullo_epi32(lane_index().v, _mm512_set1_epi32(0x00040004)));
}
// Two vectors to 32 bf16 in a row: the high halves as they are, or to nearest even. A NaN must be 0x7FC00000,
// as no_nan_payload makes it.
SMEZO_VEC void store_high16_pair(uint16_t* p, U16 a, U16 b) {
  _mm512_storeu_si512(p, _mm512_permutex2var_epi16(a.v, odd_words(), b.v));
}
SMEZO_VEC void store_bf16_pair(uint16_t* p, F16 a, F16 b) {
  const __m512i x = _mm512_castps_si512(a.v), y = _mm512_castps_si512(b.v), one = _mm512_set1_epi16(1);
  const __m512i odd = odd_words();
  const __m512i high = _mm512_permutex2var_epi16(x, odd, y);
  const __m512i low = _mm512_permutex2var_epi16(x, _mm512_sub_epi16(odd, one), y);
  // Up when low > 1/2, or low = 1/2 and high is odd.
  const __m512i tie_odd = _mm512_adds_epu16(low, _mm512_and_si512(high, one));
  const __mmask32 up = _mm512_cmpgt_epu16_mask(tie_odd, _mm512_set1_epi16(-32768));
  _mm512_storeu_si512(p, _mm512_mask_add_epi16(high, up, high, one));
}
// 4-bit codes, two a byte, the high half first: in the low 4 bits of each lane, whose other bits are garbage.
SMEZO_VEC U16 spread_codes(__m128i bytes) {
  return {_mm512_multishift_epi64_epi8(_mm512_set1_epi64(4), _mm512_cvtepu8_epi64(bytes))};
}
SMEZO_VEC U16 load_codes(const uint8_t* p) {
  return spread_codes(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
SMEZO_VEC U16 load_codes_n(const uint8_t* p, int n) {
  return spread_codes(_mm_maskz_loadu_epi8(first_lanes((n + 1) / 2).m, p));
}
// table[the low 4 bits of a lane]
SMEZO_VEC U16 look_up16(U16 table, U16 codes) { return {_mm512_permutexvar_epi32(codes.v, table.v)}; }
// The high halves of the table's entries of 32 codes.
SMEZO_VEC void store_high16_of_codes(uint16_t* p, U16 table, const uint8_t* codes) {
  const __m512i twice =  // an index has 5 bits, of which the highest is garbage
      _mm512_broadcast_i64x4(_mm512_cvtepi32_epi16(_mm512_srli_epi32(table.v, 16)));
  const __m512i two_bytes = _mm512_cvtepu16_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
  const __m512i words = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x0008000C00000004), two_bytes);
  _mm512_storeu_si512(p, _mm512_permutexvar_epi16(words, twice));
}
SMEZO_VEC void store_i8(int8_t* p, U16 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
}
SMEZO_VEC void store_i8_n(int8_t* p, U16 a, int n) {
  _mm_mask_storeu_epi8(p, first_lanes(n).m, _mm512_cvtepi32_epi8(a.v));
}

SMEZO_VEC F16 operator+(F16 a, F16 b) { return {_mm512_add_ps(a.v, b.v)}; }
SMEZO_VEC F16 operator-(F16 a, F16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
SMEZO_VEC F16 operator*(F16 a, F16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
SMEZO_VEC F16 operator/(F16 a, F16 b) { return {_mm512_div_ps(a.v, b.v)}; }
SMEZO_VEC F16 fma(F16 a, F16 b, F16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }    // a b + c
SMEZO_VEC F16 fnma(F16 a, F16 b, F16 c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }  // c - a b
SMEZO_VEC F16 sqrt(F16 a) { return {_mm512_sqrt_ps(a.v)}; }
// min, max: b where either is a NaN, as the machine does it.
SMEZO_VEC F16 min(F16 a, F16 b) { return {_mm512_min_ps(a.v, b.v)}; }
SMEZO_VEC F16 max(F16 a, F16 b) { return {_mm512_max_ps(a.v, b.v)}; }

SMEZO_VEC U16 operator+(U16 a, U16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
SMEZO_VEC U16 operator-(U16 a, U16 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
SMEZO_VEC U16 operator&(U16 a, U16 b) { return {_mm512_and_si512(a.v, b.v)}; }
SMEZO_VEC U16 operator|(U16 a, U16 b) { return {_mm512_or_si512(a.v, b.v)}; }
SMEZO_VEC U16 operator^(U16 a, U16 b) { return {_mm512_xor_si512(a.v, b.v)}; }
SMEZO_VEC U16 andnot(U16 a, U16 b) { return {_mm512_andnot_si512(a.v, b.v)}; }  // ~a & b
SMEZO_VEC U16 operator<<(U16 a, int n) { return {_mm512_slli_epi32(a.v, static_cast<unsigned>(n))}; }
SMEZO_VEC U16 operator>>(U16 a, int n) { return {_mm512_srli_epi32(a.v, static_cast<unsigned>(n))}; }
SMEZO_VEC U16 shift_right_signed(U16 a, int n) { return {_mm512_srai_epi32(a.v, static_cast<unsigned>(n))}; }
SMEZO_VEC U16 mul_lo(U16 a, U16 b) { return {_mm512_mullo_epi32(a.v, b.v)}; }

SMEZO_VEC F16 i32_to_f(U16 a) { return {_mm512_cvtepi32_ps(a.v)}; }  // lanes read as int32
SMEZO_VEC U16 f_to_i32(F16 a) { return {_mm512_cvtps_epi32(a.v)}; }  // nearest even
SMEZO_VEC U16 f_to_i32_trunc(F16 a) { return {_mm512_cvttps_epi32(a.v)}; }
SMEZO_VEC F16 f16_to_f_quiet(U16 a) { return {_mm512_cvtph_ps(_mm512_cvtepi32_epi16(a.v))}; }

SMEZO_VEC M16 operator<=(F16 a, F16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)}; }
SMEZO_VEC M16 operator>=(F16 a, F16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ)}; }
SMEZO_VEC M16 operator<(F16 a, F16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
SMEZO_VEC M16 operator>(F16 a, F16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ)}; }
SMEZO_VEC M16 is_nan(F16 a) { return {_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q)}; }
SMEZO_VEC M16 operator==(U16 a, U16 b) { return {_mm512_cmpeq_epi32_mask(a.v, b.v)}; }
SMEZO_VEC M16 less_signed(U16 a, U16 b) { return {_mm512_cmplt_epi32_mask(a.v, b.v)}; }

SMEZO_VEC F16 select(M16 m, F16 yes, F16 no) { return {_mm512_mask_mov_ps(no.v, m.m, yes.v)}; }
SMEZO_VEC U16 select(M16 m, U16 yes, U16 no) { return {_mm512_mask_mov_epi32(no.v, m.m, yes.v)}; }
SMEZO_VEC F16 zero_unless(M16 m, F16 a) { return {_mm512_maskz_mov_ps(m.m, a.v)}; }
SMEZO_VEC U16 zero_unless(M16 m, U16 a) { return {_mm512_maskz_mov_epi32(m.m, a.v)}; }

// yes where bit 31 of sign is set.
SMEZO_VEC F16 select_by_sign(U16 sign, F16 yes, F16 no) {
  return {_mm512_mask_mov_ps(no.v, _mm512_movepi32_mask(sign.v), yes.v)};
}

// For products of 32-bit lanes: the low half of every 64-bit lane times the low half of the other, and 64-bit
// shifts.
SMEZO_VEC U16 mul_even(U16 a, U16 b) { return {_mm512_mul_epu32(a.v, b.v)}; }
SMEZO_VEC U16 shift_right_32of64(U16 a) { return {_mm512_srli_epi64(a.v, 32)}; }
SMEZO_VEC U16 shift_left_32of64(U16 a) { return {_mm512_slli_epi64(a.v, 32)}; }
SMEZO_VEC U16 even_odd(U16 even, U16 odd) { return {_mm512_mask_mov_epi32(even.v, 0xAAAA, odd.v)}; }

#else  // AVX2, FMA, F16C

struct F16 {
  __m256 a, b;
  F16() = default;
  SMEZO_CTOR F16(__m256 x, __m256 y) : a(x), b(y) {}
  SMEZO_CTOR explicit F16(float x) : a(_mm256_set1_ps(x)), b(a) {}
};
struct U16 {
  __m256i a, b;
  U16() = default;
  SMEZO_CTOR U16(__m256i x, __m256i y) : a(x), b(y) {}
  SMEZO_CTOR explicit U16(uint32_t x) : a(_mm256_set1_epi32(static_cast<int>(x))), b(a) {}
};
struct M16 {
  __m256i a, b;  // all ones or all zeros
};

SMEZO_VEC U16 lane_index() {
  return {_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)};
}
SMEZO_VEC M16 first_lanes(int n) {
  const __m256i m = _mm256_set1_epi32(n);
  const U16 i = lane_index();
  return {_mm256_cmpgt_epi32(m, i.a), _mm256_cmpgt_epi32(m, i.b)};
}
SMEZO_VEC M16 mask_and(M16 x, M16 y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
SMEZO_VEC M16 mask_or(M16 x, M16 y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
SMEZO_VEC M16 mask_not(M16 x) {
  const __m256i ones = _mm256_set1_epi32(-1);
  return {_mm256_xor_si256(x.a, ones), _mm256_xor_si256(x.b, ones)};
}
SMEZO_VEC uint32_t mask_bits(M16 x) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(x.a))) |
         static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(x.b))) << 8;
}

SMEZO_VEC F16 as_f(U16 x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
SMEZO_VEC U16 as_u(F16 x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }

SMEZO_VEC F16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
SMEZO_VEC U16 load(const uint32_t* p) {
  const __m256i* q = reinterpret_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
SMEZO_VEC void store(float* p, F16 x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
SMEZO_VEC void store(uint32_t* p, U16 x) {
  __m256i* q = reinterpret_cast<__m256i*>(p);
  _mm256_storeu_si256(q, x.a);
  _mm256_storeu_si256(q + 1, x.b);
}
// Partial: the first n lanes; the others read as zero and are not touched in memory.
SMEZO_VEC F16 load_n(const float* p, int n) {
  const M16 m = first_lanes(n);
  return {_mm256_maskload_ps(p, m.a), _mm256_maskload_ps(p + 8, m.b)};
}
SMEZO_VEC void store_n(float* p, F16 x, int n) {
  const M16 m = first_lanes(n);
  _mm256_maskstore_ps(p, m.a, x.a);
  _mm256_maskstore_ps(p + 8, m.b, x.b);
}
// 16-bit and 8-bit memory: widened by zeros (bytes: by their sign); stores keep the low bits of every lane.
SMEZO_VEC U16 load_u16(const uint16_t* p) {
  const __m128i* q = reinterpret_cast<const __m128i*>(p);
  return {_mm256_cvtepu16_epi32(_mm_loadu_si128(q)), _mm256_cvtepu16_epi32(_mm_loadu_si128(q + 1))};
}
SMEZO_VEC U16 load_u16_n(const uint16_t* p, int n) {
  alignas(32) uint16_t t[16] = {};
  __builtin_memcpy(t, p, static_cast<size_t>(n) * 2);
  return load_u16(t);
}
SMEZO_VEC U16 load_i8(const int8_t* p) {
  const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi8_epi32(v), _mm256_cvtepi8_epi32(_mm_srli_si128(v, 8))};
}
SMEZO_VEC U16 load_i8_n(const int8_t* p, int n) {
  alignas(16) int8_t t[16] = {};
  __builtin_memcpy(t, p, static_cast<size_t>(n));
  return load_i8(t);
}
SMEZO_VEC __m256i low_halves(U16 x) {  // lane i's low 16 bits at position i
  const __m256i low = _mm256_set1_epi32(0xFFFF);
  const __m256i packed = _mm256_packus_epi32(_mm256_and_si256(x.a, low), _mm256_and_si256(x.b, low));
  return _mm256_permute4x64_epi64(packed, 0xD8);
}
SMEZO_VEC void store_u16(uint16_t* p, U16 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), low_halves(x));
}
// The high halves of the lanes.
SMEZO_VEC void store_high16(uint16_t* p, U16 x) {
  const __m256i packed = _mm256_packus_epi32(_mm256_srli_epi32(x.a, 16), _mm256_srli_epi32(x.b, 16));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xD8));
}
SMEZO_VEC void store_high16_pair(uint16_t* p, U16 x, U16 y) {
  store_high16(p, x);
  store_high16(p + 16, y);
}
SMEZO_VEC void store_u16_n(uint16_t* p, U16 x, int n) {
  alignas(32) uint16_t t[16];
  store_u16(t, x);
  __builtin_memcpy(p, t, static_cast<size_t>(n) * 2);
}
// 4-bit codes, two a byte, the high half first: in the low 4 bits of each lane, whose other bits are garbage.
SMEZO_VEC U16 load_codes(const uint8_t* p) {
  const __m256i shift = _mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24);
  int32_t four_bytes[2];
  __builtin_memcpy(four_bytes, p, 8);
  return {_mm256_srlv_epi32(_mm256_set1_epi32(four_bytes[0]), shift),
          _mm256_srlv_epi32(_mm256_set1_epi32(four_bytes[1]), shift)};
}
SMEZO_VEC U16 load_codes_n(const uint8_t* p, int n) {
  uint8_t t[8] = {};
  __builtin_memcpy(t, p, static_cast<size_t>((n + 1) / 2));
  return load_codes(t);
}
// table[the low 4 bits of a lane]
SMEZO_VEC __m256i look_up16(U16 table, __m256i codes) {
  const __m256 low = _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(table.a, codes));
  const __m256 high = _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(table.b, codes));
  const __m256 bit3 = _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28));
  return _mm256_castps_si256(_mm256_blendv_ps(low, high, bit3));
}
SMEZO_VEC U16 look_up16(U16 table, U16 codes) {
  return {look_up16(table, codes.a), look_up16(table, codes.b)};
}
// The high halves of the table's entries of 32 codes.
SMEZO_VEC void store_high16_of_codes(uint16_t* p, U16 table, const uint8_t* codes) {
  store_high16(p, look_up16(table, load_codes(codes)));
  store_high16(p + 16, look_up16(table, load_codes(codes + 8)));
}
SMEZO_VEC void store_i8(int8_t* p, U16 x) {
  const __m256i h = _mm256_and_si256(low_halves(x), _mm256_set1_epi16(0xFF));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm_packus_epi16(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1)));
}
SMEZO_VEC void store_i8_n(int8_t* p, U16 x, int n) {
  alignas(16) int8_t t[16];
  store_i8(t, x);
  __builtin_memcpy(p, t, static_cast<size_t>(n));
}

SMEZO_VEC F16 operator+(F16 x, F16 y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
SMEZO_VEC F16 operator-(F16 x, F16 y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
SMEZO_VEC F16 operator*(F16 x, F16 y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
SMEZO_VEC F16 operator/(F16 x, F16 y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
SMEZO_VEC F16 fma(F16 x, F16 y, F16 z) {  // x y + z
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
SMEZO_VEC F16 fnma(F16 x, F16 y, F16 z) {  // z - x y
  return {_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)};
}
SMEZO_VEC F16 sqrt(F16 x) { return {_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)}; }
// min, max: y where either is a NaN, as the machine does it.
SMEZO_VEC F16 min(F16 x, F16 y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
SMEZO_VEC F16 max(F16 x, F16 y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }

SMEZO_VEC U16 operator+(U16 x, U16 y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
SMEZO_VEC U16 operator-(U16 x, U16 y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
SMEZO_VEC U16 operator&(U16 x, U16 y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
SMEZO_VEC U16 operator|(U16 x, U16 y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
SMEZO_VEC U16 operator^(U16 x, U16 y) { return {_mm256_xor_si256(x.a, y.a), _mm256_xor_si256(x.b, y.b)}; }
SMEZO_VEC U16 andnot(U16 x, U16 y) {
  return {_mm256_andnot_si256(x.a, y.a), _mm256_andnot_si256(x.b, y.b)};
}  // ~x & y
SMEZO_VEC U16 operator<<(U16 x, int n) { return {_mm256_slli_epi32(x.a, n), _mm256_slli_epi32(x.b, n)}; }
SMEZO_VEC U16 operator>>(U16 x, int n) { return {_mm256_srli_epi32(x.a, n), _mm256_srli_epi32(x.b, n)}; }
SMEZO_VEC U16 shift_right_signed(U16 x, int n) {
  return {_mm256_srai_epi32(x.a, n), _mm256_srai_epi32(x.b, n)};
}
SMEZO_VEC U16 mul_lo(U16 x, U16 y) { return {_mm256_mullo_epi32(x.a, y.a), _mm256_mullo_epi32(x.b, y.b)}; }

SMEZO_VEC F16 i32_to_f(U16 x) {
  return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)};
}  // lanes read as int32
SMEZO_VEC U16 f_to_i32(F16 x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }  // nearest even
SMEZO_VEC U16 f_to_i32_trunc(F16 x) { return {_mm256_cvttps_epi32(x.a), _mm256_cvttps_epi32(x.b)}; }
SMEZO_VEC F16 f16_to_f_quiet(U16 x) {
  const __m256i h = low_halves(x);
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(h)), _mm256_cvtph_ps(_mm256_extracti128_si256(h, 1))};
}

#define SMEZO_VEC_CMP(name, pred)                                \
  SMEZO_VEC M16 name(F16 x, F16 y) {                             \
    return {_mm256_castps_si256(_mm256_cmp_ps(x.a, y.a, pred)),  \
            _mm256_castps_si256(_mm256_cmp_ps(x.b, y.b, pred))}; \
  }
SMEZO_VEC_CMP(operator<=, _CMP_LE_OQ)
SMEZO_VEC_CMP(operator>=, _CMP_GE_OQ)
SMEZO_VEC_CMP(operator<, _CMP_LT_OQ)
SMEZO_VEC_CMP(operator>, _CMP_GT_OQ)
SMEZO_VEC_CMP(unordered, _CMP_UNORD_Q)
#undef SMEZO_VEC_CMP
SMEZO_VEC M16 is_nan(F16 x) { return unordered(x, x); }
SMEZO_VEC M16 operator==(U16 x, U16 y) {
  return {_mm256_cmpeq_epi32(x.a, y.a), _mm256_cmpeq_epi32(x.b, y.b)};
}
SMEZO_VEC M16 less_signed(U16 x, U16 y) {
  return {_mm256_cmpgt_epi32(y.a, x.a), _mm256_cmpgt_epi32(y.b, x.b)};
}

SMEZO_VEC U16 select(M16 m, U16 yes, U16 no) {
  return {_mm256_blendv_epi8(no.a, yes.a, m.a), _mm256_blendv_epi8(no.b, yes.b, m.b)};
}
SMEZO_VEC F16 select(M16 m, F16 yes, F16 no) { return as_f(select(m, as_u(yes), as_u(no))); }
SMEZO_VEC U16 zero_unless(M16 m, U16 x) { return {_mm256_and_si256(m.a, x.a), _mm256_and_si256(m.b, x.b)}; }
SMEZO_VEC F16 zero_unless(M16 m, F16 x) { return as_f(zero_unless(m, as_u(x))); }

// yes where bit 31 of sign is set.
SMEZO_VEC F16 select_by_sign(U16 sign, F16 yes, F16 no) {
  return {_mm256_blendv_ps(no.a, yes.a, _mm256_castsi256_ps(sign.a)),
          _mm256_blendv_ps(no.b, yes.b, _mm256_castsi256_ps(sign.b))};
}

// For products of 32-bit lanes: the low half of every 64-bit lane times the low half of the other, and 64-bit
// shifts.
SMEZO_VEC U16 mul_even(U16 x, U16 y) { return {_mm256_mul_epu32(x.a, y.a), _mm256_mul_epu32(x.b, y.b)}; }
SMEZO_VEC U16 shift_right_32of64(U16 x) { return {_mm256_srli_epi64(x.a, 32), _mm256_srli_epi64(x.b, 32)}; }
SMEZO_VEC U16 shift_left_32of64(U16 x) { return {_mm256_slli_epi64(x.a, 32), _mm256_slli_epi64(x.b, 32)}; }
SMEZO_VEC U16 even_odd(U16 even, U16 odd) {
  return {_mm256_blend_epi32(even.a, odd.a, 0xAA), _mm256_blend_epi32(even.b, odd.b, 0xAA)};
}

#endif

SMEZO_VEC F16 set1(float x) { return F16(x); }
SMEZO_VEC U16 set1(uint32_t x) { return U16(x); }
SMEZO_VEC F16 zero_f() { return set1(0.0f); }
SMEZO_VEC U16 zero_u() { return set1(uint32_t{0}); }
SMEZO_VEC F16 abs(F16 x) { return as_f(as_u(x) & set1(0x7FFFFFFFu)); }
SMEZO_VEC F16 negate(F16 x) { return as_f(as_u(x) ^ set1(0x80000000u)); }

// Formats, to the bits of format/half.h: a NaN becomes 0x7FC0 by rounding to bf16, and keeps its payload from
// fp16 (the instruction would quiet it). Rounding is not vcvtneps2bf16: that one flushes denormals to zero.
SMEZO_VEC F16 f16_to_f(U16 x) {
  const F16 f = f16_to_f_quiet(x);
  const U16 nan = (x & set1(0x8000u)) << 16 | set1(0x7F800000u) | (x & set1(0x3FFu)) << 13;
  return select(is_nan(f), as_f(nan), f);
}
SMEZO_VEC F16 bf16_to_f(U16 x) { return as_f(x << 16); }
SMEZO_VEC F16 no_nan_payload(F16 x) { return select(is_nan(x), as_f(set1(0x7FC00000u)), x); }
// Rounded to bf16, whose bits stay in the high half of each lane; the low half is whatever is left over.
SMEZO_VEC U16 bf16_high_of_no_payload(F16 x) {
  const U16 u = as_u(x);
  return u + ((u >> 16) & set1(1u)) + set1(0x7FFFu);
}
SMEZO_VEC U16 bf16_high(F16 x) { return bf16_high_of_no_payload(no_nan_payload(x)); }
SMEZO_VEC U16 bf16_high_stochastic(F16 x, U16 random) { return as_u(no_nan_payload(x)) + random; }
SMEZO_VEC U16 f_to_bf16(F16 x) { return bf16_high(x) >> 16; }
SMEZO_VEC F16 round_bf16(F16 x) { return as_f(bf16_high(x) & set1(0xFFFF0000u)); }

#if !defined(__AVX512F__)
SMEZO_VEC void store_bf16_pair(uint16_t* p, F16 x, F16 y) {
  store_high16_pair(p, bf16_high_of_no_payload(x), bf16_high_of_no_payload(y));
}
#endif

// The names base/lanes.h asks of a vector type.
SMEZO_VEC F16 lane_fma(F16 a, F16 b, F16 c) { return fma(a, b, c); }
SMEZO_VEC F16 lane_sqrt(F16 a) { return sqrt(a); }
SMEZO_VEC F16 lane_from_int(U16 a) { return i32_to_f(a); }
SMEZO_VEC U16 lane_bits(F16 a) { return as_u(a); }
SMEZO_VEC F16 lane_float(U16 a) { return as_f(a); }
SMEZO_VEC U16 lane_sar(U16 a, int n) { return shift_right_signed(a, n); }
SMEZO_VEC F16 lane_select(U16 sign, F16 a, F16 b) { return select_by_sign(sign, a, b); }
SMEZO_VEC F16 lane_sign(F16 a) {
  return select(a > F16(0.0f), F16(1.0f), zero_unless(a < F16(0.0f), F16(-1.0f)));
}
SMEZO_VEC F16 lane_const(float x, F16) { return F16(x); }
SMEZO_VEC U16 lane_const(uint32_t x, U16) { return U16(x); }

// Words kept as 64-bit lanes, even and odd ones apart, with only the low half of each in use: vpmuludq reads
// and makes just that, so that a Philox round needs no shuffle.
struct Wide16 {
  U16 even, odd;
  Wide16() = default;
  SMEZO_CTOR Wide16(U16 e, U16 o) : even(e), odd(o) {}
  SMEZO_CTOR explicit Wide16(uint32_t x) : even(x), odd(even) {}
};
SMEZO_VEC Wide16 widen(U16 a) { return {a, shift_right_32of64(a)}; }
SMEZO_VEC U16 narrow(Wide16 a) { return even_odd(a.even, shift_left_32of64(a.odd)); }
SMEZO_VEC Wide16 operator^(Wide16 a, Wide16 b) { return {a.even ^ b.even, a.odd ^ b.odd}; }
SMEZO_VEC Wide16 lane_const(uint32_t x, Wide16) { return Wide16(x); }
SMEZO_VEC void lane_mul(Wide16 a, uint32_t m, Wide16* hi, Wide16* lo) {
  *lo = {mul_even(a.even, U16(m)), mul_even(a.odd, U16(m))};
  *hi = {shift_right_32of64(lo->even), shift_right_32of64(lo->odd)};
}
