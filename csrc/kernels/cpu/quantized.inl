// Elements of quantized weights to a strip, or to fp32. Included after elements.inl inside the namespace of
// an instruction set.
#pragma once

constexpr int64_t kCodesAhead = 1024;  // bytes to ask for ahead; past the very end that is harmless

// NF4: an element has one of 16 values for its block, so that a block's values are made, and rounded, once
// and then only looked up.
template <Strip strip>
static void nf4_elements(const WeightView& view, int64_t e, int64_t n, void* out) {
  const WeightView w = view;  // a strip is written through pointers that could alias the argument
  alignas(64) float values[16];
  for (uint32_t code = 0; code < 16; ++code) values[code] = nf4_value(code);
  const F16 unit = load(values);
  const int shift = __builtin_ctz(static_cast<uint32_t>(w.scales.block));
  for (int64_t i = 0; i < n;) {
    const int64_t block = (e + i) >> shift, left = ((block + 1) << shift) - e;
    const int64_t end = left < n ? left : n;
    const F16 value = unit * set1(nf4_absmax(w.scales, block, block - (w.first >> shift)));
    const U16 table = strip == Strip::f32 ? as_u(value) : bf16_high(value);
    const uint8_t* codes = static_cast<const uint8_t*>(w.data) + (e + i - w.first) / 2;
    __builtin_prefetch(codes + kCodesAhead, 0, 3);
    if ((e + i) % 2 != 0) put<strip>(out, i++, look_up16(table, set1(uint32_t{*codes++})), Part{1});
    if constexpr (strip == Strip::bf16) {
      for (; i + 32 <= end; i += 32, codes += 16)
        store_high16_of_codes(static_cast<uint16_t*>(out) + i, table, codes);
    }
    for_lanes(i, end, [&](int64_t at, auto lanes) {
      put<strip>(out, at, look_up16(table, load_codes(codes + (at - i) / 2, lanes)), lanes);
    });
    i = end;
  }
}

template <Strip strip>
static void int8_elements(const WeightView& view, int64_t e, int64_t n, void* out) {
  const WeightView w = view;
  const F16 step = set1(kInt8Step);
  for (int64_t i = 0; i < n;) {
    const int64_t row = (e + i) / w.cols, left = (row + 1) * w.cols - e;
    const int64_t end = left < n ? left : n;
    const F16 absmax = set1(w.scales.absmax[row]);
    const int8_t* q = static_cast<const int8_t*>(w.data) + (e - w.first);
    for_lanes(i, end, [&](int64_t at, auto lanes) {
      const F16 value = i32_to_f(load_i8(q + at, lanes)) * absmax * step;
      put<strip>(out, at, strip == Strip::f32 ? as_u(value) : bf16_high(value), lanes);
    });
    i = end;
  }
}

SMEZO_VEC bool is_quantized(const WeightView& w) { return w.dtype == DType::NF4 || w.dtype == DType::I8; }

// Elements [e, e + n), as the plain branch has them.
template <Strip strip>
static void quantized_elements(const WeightView& w, int64_t e, int64_t n, void* out) {
  if (w.dtype == DType::NF4)
    nf4_elements<strip>(w, e, n, out);
  else
    int8_elements<strip>(w, e, n, out);
}
