// The operand producer, decode and noise verbs of kernels.h. Two stages over windows of kWindow elements
// (noise.inl): noise and other random bits go to buffers in L1, then one pass over the stored weight decodes,
// masks, adds and rounds. A window crosses rows freely; the second stage takes it a row piece at a time.
// Quantized weights (quantized.inl) go through a buffer of fp32 values instead, but for the plain branch,
// whose operands are made at once. Included after noise.inl and quantized.inl inside the namespace of an
// instruction set.
#pragma once

template <DType dtype, class Lanes>
SMEZO_VEC F16 decode_lanes(const void* data, const int8_t* tail, int64_t e, Lanes lanes) {
  if constexpr (dtype == DType::F32) return load(static_cast<const float*>(data) + e, lanes);
  const U16 u = load_u16(static_cast<const uint16_t*>(data) + e, lanes);
  if constexpr (dtype == DType::F16) return f16_to_f(u);
  if constexpr (dtype == DType::BF16) return bf16_to_f(u);
  return as_f((u << 16) + (load_i8(tail + e, lanes) << 8));
}

// mask_at for the kinds that look at the weight.
template <MaskKind kind>
SMEZO_VEC M16 in_selection(F16 w, F16 h) {
  return kind == MaskKind::small ? abs(w) <= h : abs(w) >= h;
}

// The operand of the plain branch: a stored bf16 plane is used as it is.
template <DType dtype, Strip strip, class Lanes>
SMEZO_VEC U16 plain_high(const void* data, int64_t e, F16 w, Lanes lanes) {
  if constexpr (strip == Strip::f32) return as_u(w);
  if constexpr (dtype == DType::BF16 || dtype == DType::BF16T8)
    return as_u(decode_lanes<DType::BF16>(data, nullptr, e, lanes));
  return bf16_high(w);
}

// A piece of one row: n elements from data[e] on with their noise, to plus[0..n) and minus[0..n).
struct Piece {
  const void* data;
  const int8_t* tail;
  int64_t e, n;
  const float* z;
  const uint32_t* dither;
  float eps, h;
  void* plus;
  void* minus;
};

template <DType dtype, MaskKind mask, Strip strip, OperandMode mode>
static void make_operands(const Piece& piece) {
  const Piece p = piece;  // strips are written through pointers that could alias the argument
  const F16 eps = set1(p.eps), minus_eps = set1(-p.eps), h = set1(p.h);
  constexpr bool rounds = strip != Strip::f32, dithers = rounds && mode == OperandMode::dither;
  struct Both {
    F16 plus, minus;
  };
  const auto branches = [&](int64_t i, auto lanes) SMEZO_CTOR -> Both {
    F16 w = decode_lanes<dtype>(p.data, p.tail, p.e + i, lanes);
    F16 z = load(p.z + i);  // a buffer is longer than its window by a vector
    if constexpr (mask != MaskKind::all) z = zero_unless(in_selection<mask>(w, h), z);
    if constexpr (mode == OperandMode::split)
      return {as_f(plain_high<dtype, strip>(p.data, p.e + i, w, lanes)), z};
    // Noise is finite, so that a NaN comes from w alone.
    if constexpr (rounds) w = no_nan_payload(w);
    return {fma(eps, z, w), fma(minus_eps, z, w)};
  };
  int64_t i = 0;
  if constexpr (strip == Strip::bf16) {
    uint16_t *plus = static_cast<uint16_t*>(p.plus), *minus = static_cast<uint16_t*>(p.minus);
    for (; i + 32 <= p.n; i += 32) {
      const Both a = branches(i, Whole{}), b = branches(i + 16, Whole{});
      if constexpr (dithers) {
        const U16 r = load(p.dither + i), s = load(p.dither + i + 16);
        store_high16_pair(plus + i, as_u(a.plus) + r, as_u(b.plus) + s);
        store_high16_pair(minus + i, as_u(a.minus) + r, as_u(b.minus) + s);
      } else {
        if constexpr (mode == OperandMode::split)
          store_high16_pair(plus + i, as_u(a.plus), as_u(b.plus));
        else
          store_bf16_pair(plus + i, a.plus, b.plus);
        store_bf16_pair(minus + i, a.minus, b.minus);
      }
    }
  }
  for_lanes(i, p.n, [&](int64_t at, auto lanes) {
    const Both x = branches(at, lanes);
    const auto rounded = [&](F16 v) {
      return !rounds ? as_u(v) : dithers ? as_u(v) + load(p.dither + at) : bf16_high_of_no_payload(v);
    };
    put<strip>(p.plus, at, mode == OperandMode::split ? as_u(x.plus) : rounded(x.plus), lanes);
    put<strip>(p.minus, at, rounded(x.minus), lanes);
  });
}

template <DType dtype, Strip strip>
static void make_plain(const Piece& p) {
  for_lanes(0, p.n, [&](int64_t i, auto lanes) {
    const F16 w = decode_lanes<dtype>(p.data, p.tail, p.e + i, lanes);
    put<strip>(p.plus, i, plain_high<dtype, strip>(p.data, p.e + i, w, lanes), lanes);
  });
}

using MakeOperands = void (*)(const Piece&);

template <DType dtype, MaskKind mask, Strip strip>
static MakeOperands operands_for(OperandMode mode) {
  switch (mode) {
    case OperandMode::nearest:
      return make_operands<dtype, mask, strip, OperandMode::nearest>;
    case OperandMode::dither:  // nothing is rounded in an f32 strip
      return make_operands < dtype, mask, strip,
             strip == Strip::f32 ? OperandMode::nearest : OperandMode::dither > ;
    case OperandMode::split:
      return make_operands<dtype, mask, strip, OperandMode::split>;
  }
  return nullptr;
}
template <DType dtype, Strip strip>
static MakeOperands operands_for(const OperandJob& job) {
  if (job.eps == 0) return make_plain<dtype, strip>;
  switch (job.dir.mask.kind) {
    case MaskKind::small:
      return operands_for<dtype, MaskKind::small, strip>(job.mode);
    case MaskKind::large:
      return operands_for<dtype, MaskKind::large, strip>(job.mode);
    case MaskKind::all:
    case MaskKind::random:
      break;  // random: the noise comes masked
  }
  return operands_for<dtype, MaskKind::all, strip>(job.mode);
}
template <Strip strip>
static MakeOperands operands_for(const OperandJob& job) {
  switch (job.w.dtype) {
    case DType::F32:
      return operands_for<DType::F32, strip>(job);
    case DType::F16:
      return operands_for<DType::F16, strip>(job);
    case DType::BF16:
      return operands_for<DType::BF16, strip>(job);
    case DType::BF16T8:
      return operands_for<DType::BF16T8, strip>(job);
    case DType::NF4:
    case DType::I8:
      break;  // perturbed: decoded to a buffer first
  }
  return operands_for<DType::F32, strip>(job);
}

// The random mask is not of a step: its bits are those of step 0, query 0.
SMEZO_VEC Stream mask_stream(Stream s) {
  s.purpose = Purpose::mask;
  s.step = 0;
  s.query = 0;
  return s;
}

// z <- m z for the random mask.
static void mask_noise(const TensorDirection& d, uint64_t e, int64_t n, uint32_t* bits, float* z) {
  fill_bits<16>(mask_stream(d.stream), e, n, bits);
  const int64_t begin = static_cast<int64_t>(e - window_of(e)) / 16 * 16;
  const int64_t end = static_cast<int64_t>(e - window_of(e)) + n;
  const U16 keep = set1(d.mask.keep);
  for (int64_t i = begin; i < end; i += 16)
    store(z + i, zero_unless(less_signed(load(bits + i), keep), load(z + i)));
}

// z <- z / sqrt(h)
static void scale_noise(const float* h, int64_t n, float* z) {
  for_lanes(0, n, [&](int64_t i, auto lanes) {
    store(z + i, load(z + i, lanes) / sqrt(load(h + i, lanes)), lanes);
  });
}

// `produce` for a set whose bf16 strips are `bf16_strip`; ld: elements of a strip row.
template <Strip bf16_strip>
static void produce_rows(const OperandJob& job, int64_t ld, int64_t row0, int64_t n_rows, void* plus,
                         void* minus) {
  const bool f32 = job.compute == Compute::f32;
  const MakeOperands make = f32 ? operands_for<Strip::f32>(job) : operands_for<bf16_strip>(job);
  const auto make_quantized = f32 ? quantized_elements<Strip::f32> : quantized_elements<bf16_strip>;
  const int64_t size = !f32 && bf16_strip == Strip::bf16 ? 2 : 4;
  const int64_t cols = job.w.cols;
  const bool plain = job.eps == 0, dither = !plain && !f32 && job.mode == OperandMode::dither;
  const bool quantized = is_quantized(job.w);

  alignas(64) float z[kWindow + kVecLanes], w[kWindow + kVecLanes];
  alignas(64) uint32_t bits[kWindow + kVecLanes];
  alignas(64) char unwanted[kWindow * sizeof(float)];  // where a branch that nobody asked for goes
  const auto at = [&](void* strip, int64_t row, int64_t col) -> void* {
    return strip ? static_cast<char*>(strip) + (row * ld + col) * size : unwanted;
  };
  Stream dither_stream = job.dir.stream;
  dither_stream.purpose = Purpose::dither;

  int64_t row = 0, col = 0;
  for_windows(static_cast<uint64_t>(row0 * cols), n_rows * cols, [&](uint64_t e, int64_t n) {
    if (!plain) {
      fill_noise(job.dir.noise, job.dir.stream, e, n, z);
      if (job.dir.mask.kind == MaskKind::random) mask_noise(job.dir, e, n, bits, z);
      if (dither) fill_bits<16>(dither_stream, e, n, bits);
      if (job.curvature) {
        const int64_t at = static_cast<int64_t>(e - window_of(e));
        scale_noise(job.curvature + (static_cast<int64_t>(e) - job.w.first), n, z + at);
      }
    }
    const int64_t begin = static_cast<int64_t>(e - window_of(e));
    if (quantized && !plain) quantized_elements<Strip::f32>(job.w, static_cast<int64_t>(e), n, w + begin);
    for (int64_t done = 0; done < n;) {
      const int64_t piece = cols - col < n - done ? cols - col : n - done, i = begin + done;
      const int64_t element = static_cast<int64_t>(e) + done;
      if (quantized && plain) {
        make_quantized(job.w, element, piece, at(plus, row, col));
      } else {
        make({quantized ? w : job.w.data, job.w.tail, quantized ? i : element - job.w.first, piece, z + i,
              bits + i, job.eps, job.dir.mask.h, at(plus, row, col), at(minus, row, col)});
      }
      done += piece;
      col += piece;
      if (col < cols) continue;
      for (void* strip : {plus, plain ? nullptr : minus}) {
        if (strip && ld > cols) memset(at(strip, row, cols), 0, static_cast<size_t>((ld - cols) * size));
      }
      col = 0;
      ++row;
    }
  });
}

template <DType dtype>
static void decode_as(const WeightView& w, int64_t e0, int64_t n, float* out) {
  for_lanes(0, n, [&](int64_t i, auto lanes) {
    put<Strip::f32>(out, i, as_u(decode_lanes<dtype>(w.data, w.tail, e0 - w.first + i, lanes)), lanes);
  });
}

static void decode_range(const WeightView& w, int64_t e0, int64_t n, float* out) {
  switch (w.dtype) {
    case DType::F32:
      return decode_as<DType::F32>(w, e0, n, out);
    case DType::F16:
      return decode_as<DType::F16>(w, e0, n, out);
    case DType::BF16:
      return decode_as<DType::BF16>(w, e0, n, out);
    case DType::BF16T8:
      return decode_as<DType::BF16T8>(w, e0, n, out);
    case DType::NF4:
    case DType::I8:
      return quantized_elements<Strip::f32>(w, e0, n, out);
  }
}
