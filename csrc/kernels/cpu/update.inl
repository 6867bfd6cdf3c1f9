// The update verb of kernels.h: one committed record on stored weights. Flat over elements, a window at a time: decode and decay, one pass a
// query, one rounding. Included after producer.inl inside the namespace of an instruction set.
#pragma once

// Elements [at, at + n) of a window buffer are stored elements [e, e + n).
template <DType dtype>
static void start_update(const UpdateJob& job, int64_t e, int64_t n, float* w) {
  const F16 decay = set1(-job.decay);
  const bool decays = job.decay != 0;  // otherwise an infinite weight would become a NaN, and -0 would become +0
  for_lanes(0, n, [&](int64_t i, auto lanes) {
    const F16 x = decode_lanes<dtype>(job.w.data, job.w.tail, e + i, lanes);
    store(w + i, decays ? fma(decay, x, x) : x);
  });
}

SMEZO_VEC void step_query(float c, const float* z, int64_t n, float* w) {
  const F16 minus_c = set1(-c);
  for (int64_t i = 0; i < n; i += 16) store(w + i, fma(minus_c, load(z + i), load(w + i)));
}

template <DType dtype, class Lanes>
SMEZO_VEC void encode_lanes(const WeightView& v, int64_t e, F16 x, U16 random, M16 in, Lanes lanes) {
  if constexpr (dtype == DType::F32) {
    float* p = static_cast<float*>(v.data) + e;
    if constexpr (Lanes::all) store(p, select(in, x, load(p)));
    else store_n(p, select(in, x, load_n(p, lanes.n)), lanes.n);
  } else {
    uint16_t* p = static_cast<uint16_t*>(v.data) + e;
    const U16 old = Lanes::all ? load_u16(p) : load_u16_n(p, lanes.n);
    U16 high, tail;
    if constexpr (dtype == DType::BF16) {
      high = bf16_high_stochastic(x, random) >> 16;
    } else {  // format/split24.h, left-justified in 32 bits
      const U16 u24 = select(is_nan(x), set1(0x7FC00000u), as_u(x) + random) >> 8;
      high = (u24 + set1(0x80u)) >> 8;
      tail = u24 - (high << 8);
    }
    high = select(in, high, old);
    if constexpr (Lanes::all) store_u16(p, high);
    else store_u16_n(p, high, lanes.n);
    if constexpr (dtype == DType::BF16T8) {
      int8_t* q = v.tail + e;
      tail = select(in, tail, Lanes::all ? load_i8(q) : load_i8_n(q, lanes.n));
      if constexpr (Lanes::all) store_i8(q, tail);
      else store_i8_n(q, tail, lanes.n);
    }
  }
}

template <DType dtype, MaskKind mask>
static void finish_update(const UpdateJob& job, int64_t e, int64_t n, const float* w, const uint32_t* random,
                          const uint32_t* mask_words) {
  const F16 h = set1(job.dir.mask.h);
  const U16 keep = set1(job.dir.mask.keep);
  for_lanes(0, n, [&](int64_t i, auto lanes) {
    M16 in = first_lanes(16);
    if constexpr (mask == MaskKind::random) in = less_signed(load(mask_words + i), keep);
    if constexpr (mask == MaskKind::small || mask == MaskKind::large)
      in = in_selection<mask>(decode_lanes<dtype>(job.w.data, job.w.tail, e + i, lanes), h);
    encode_lanes<dtype>(job.w, e + i, load(w + i), load(random + i), in, lanes);
  });
}
template <DType dtype>
static void finish_update(const UpdateJob& job, int64_t e, int64_t n, const float* w, const uint32_t* random,
                          const uint32_t* mask_words) {
  switch (job.dir.mask.kind) {
    case MaskKind::all: return finish_update<dtype, MaskKind::all>(job, e, n, w, random, mask_words);
    case MaskKind::small: return finish_update<dtype, MaskKind::small>(job, e, n, w, random, mask_words);
    case MaskKind::large: return finish_update<dtype, MaskKind::large>(job, e, n, w, random, mask_words);
    case MaskKind::random: return finish_update<dtype, MaskKind::random>(job, e, n, w, random, mask_words);
  }
}

template <DType dtype>
static void update_as(const UpdateJob& job, int64_t row0, int64_t n_rows) {
  alignas(64) float w[kWindow + kVecLanes], z[kWindow + kVecLanes];
  alignas(64) uint32_t random[kWindow + kVecLanes], mask_words[kWindow + kVecLanes];
  Stream rounding = job.dir.stream;
  rounding.purpose = Purpose::rounding;
  rounding.query = 0;
  for_windows(static_cast<uint64_t>(row0 * job.w.cols), n_rows * job.w.cols, [&](uint64_t e, int64_t n) {
    const int64_t at = static_cast<int64_t>(e - window_of(e)), e0 = static_cast<int64_t>(e);
    start_update<dtype>(job, e0, n, w + at);
    Stream direction = job.dir.stream;
    for (int q = 0; q < job.n_queries; ++q) {
      direction.query = static_cast<uint32_t>(q);
      fill_noise(job.dir.noise, direction, e, n, z);
      step_query(job.c[q], z + at, n, w + at);
    }
    if (dtype == DType::BF16) fill_bits<16>(rounding, e, n, random);
    if (dtype == DType::BF16T8) fill_bits<8>(rounding, e, n, random);
    if (job.dir.mask.kind == MaskKind::random) fill_bits<16>(mask_stream(job.dir.stream), e, n, mask_words);
    finish_update<dtype>(job, e0, n, w + at, random + at, mask_words + at);
  });
}

static void update_rows(const UpdateJob& job, int64_t row0, int64_t n_rows) {
  switch (job.w.dtype) {
    case DType::F32: return update_as<DType::F32>(job, row0, n_rows);
    case DType::BF16: return update_as<DType::BF16>(job, row0, n_rows);
    case DType::BF16T8: return update_as<DType::BF16T8>(job, row0, n_rows);
    case DType::F16: return;  // never trains: refused before it comes here
  }
}
