// A vector of elements in memory, whole or in part, and how a strip holds elements. Included after vec.h
// inside the namespace of an instruction set.
#pragma once

// How a strip holds its elements.
enum class Strip { bf16, bf16_in_f32, f32 };

// One vector of elements: all 16, or the first n of them.
struct Whole {};
struct Part {
  int n;
};
SMEZO_VEC F16 load(const float* p, Whole) { return load(p); }
SMEZO_VEC F16 load(const float* p, Part l) { return load_n(p, l.n); }
SMEZO_VEC U16 load_u16(const uint16_t* p, Whole) { return load_u16(p); }
SMEZO_VEC U16 load_u16(const uint16_t* p, Part l) { return load_u16_n(p, l.n); }
SMEZO_VEC U16 load_i8(const int8_t* p, Whole) { return load_i8(p); }
SMEZO_VEC U16 load_i8(const int8_t* p, Part l) { return load_i8_n(p, l.n); }
SMEZO_VEC U16 load_codes(const uint8_t* p, Whole) { return load_codes(p); }
SMEZO_VEC U16 load_codes(const uint8_t* p, Part l) { return load_codes_n(p, l.n); }
SMEZO_VEC void store(float* p, F16 x, Whole) { store(p, x); }
SMEZO_VEC void store(float* p, F16 x, Part l) { store_n(p, x, l.n); }
SMEZO_VEC void store_u16(uint16_t* p, U16 x, Whole) { store_u16(p, x); }
SMEZO_VEC void store_u16(uint16_t* p, U16 x, Part l) { store_u16_n(p, x, l.n); }
SMEZO_VEC void store_high16(uint16_t* p, U16 x, Whole) { store_high16(p, x); }
SMEZO_VEC void store_high16(uint16_t* p, U16 x, Part l) { store_u16_n(p, x >> 16, l.n); }
SMEZO_VEC void store_i8(int8_t* p, U16 x, Whole) { store_i8(p, x); }
SMEZO_VEC void store_i8(int8_t* p, U16 x, Part l) { store_i8_n(p, x, l.n); }

// Runs body(i, lanes) over [i, n) a vector at a time.
template <class Body>
SMEZO_VEC void for_lanes(int64_t i, int64_t n, Body&& body) {
  for (; i + 16 <= n; i += 16) body(i, Whole{});
  if (i < n) body(i, Part{static_cast<int>(n - i)});
}

// Stores values whose bf16 is the high half of each lane (f32: that are the lanes).
template <Strip strip, class Lanes>
SMEZO_VEC void put(void* out, int64_t i, U16 high, Lanes lanes) {
  if constexpr (strip == Strip::bf16) store_high16(static_cast<uint16_t*>(out) + i, high, lanes);
  if constexpr (strip == Strip::bf16_in_f32)
    store(static_cast<float*>(out) + i, as_f(high & set1(0xFFFF0000u)), lanes);
  if constexpr (strip == Strip::f32) store(static_cast<float*>(out) + i, as_f(high), lanes);
}
