// The update verb of kernels.h: one committed record on stored weights. Flat over elements, a window at a
// time. The last query, the mask and the rounding share one pass over the stored weights; only earlier
// queries go through a buffer. Rules that average come second in the file. Included after producer.inl inside
// the namespace of an instruction set.
#pragma once

// A piece of a window: n elements from data[e] on; the buffers point at the entry of e.
struct UpdatePiece {
  int64_t e, n;
  const float* z;             // of the last query
  const uint32_t* random;     // rounding bits
  const uint32_t* mask_bits;  // random mask only
  float* w;  // decayed and stepped by the queries before the last; only used where there are some
};

template <DType dtype, class Lanes>
SMEZO_VEC F16 decayed(const UpdateJob& job, int64_t e, Lanes lanes) {
  const F16 w = decode_lanes<dtype>(job.w.data, job.w.tail, e, lanes);
  // A decay of 0 is left out: it would make NaN of infinite weights and +0 of -0.
  return job.decay != 0 ? fma(set1(-job.decay), w, w) : w;
}

template <DType dtype>
static void start_update(const UpdateJob& job, const UpdatePiece& p) {
  for_lanes(0, p.n, [&](int64_t i, auto lanes) { store(p.w + i, decayed<dtype>(job, p.e + i, lanes)); });
}

static void step_query(float c, const UpdatePiece& p) {
  const F16 minus_c = set1(-c);
  for (int64_t i = 0; i < p.n; i += 16) store(p.w + i, fma(minus_c, load(p.z + i), load(p.w + i)));
}

// Rounded and stored where `in`; the other lanes keep their bits.
template <DType dtype, class Lanes>
SMEZO_VEC void encode_lanes(const WeightView& v, int64_t e, F16 x, U16 random, M16 in, Lanes lanes) {
  if constexpr (dtype == DType::F32) {
    float* p = static_cast<float*>(v.data) + e;
    store(p, select(in, x, load(p, lanes)), lanes);
  } else {
    uint16_t* p = static_cast<uint16_t*>(v.data) + e;
    const U16 old = load_u16(p, lanes), sum = bf16_high_stochastic(x, random);
    // BF16: the high half. BF16T8 (format/split24.h): 24 bits, whose nearest bf16 is the one half and the
    // rest the other.
    const U16 u24 = sum >> 8;
    const U16 high = dtype == DType::BF16 ? sum >> 16 : (u24 + set1(0x80u)) >> 8;
    if constexpr (dtype == DType::BF16T8) {
      int8_t* tail = v.tail + e;
      store_i8(tail, select(in, u24 - (high << 8), load_i8(tail, lanes)), lanes);
    }
    store_u16(p, select(in, high, old), lanes);
  }
}

template <DType dtype, MaskKind mask>
static void finish_update(const UpdateJob& j, const UpdatePiece& piece) {
  const UpdateJob job = j;  // weights are written through pointers that could alias the arguments
  const UpdatePiece p = piece;
  const bool steps = job.n_queries > 0, buffered = job.n_queries > 1;
  const F16 h = set1(job.dir.mask.h), minus_c = set1(steps ? -job.c[job.n_queries - 1] : 0.0f);
  const U16 keep = set1(job.dir.mask.keep);
  for_lanes(0, p.n, [&](int64_t i, auto lanes) {
    M16 in = first_lanes(16);
    if constexpr (mask == MaskKind::random) in = less_signed(load(p.mask_bits + i), keep);
    if constexpr (mask == MaskKind::small || mask == MaskKind::large)
      in = in_selection<mask>(decode_lanes<dtype>(job.w.data, job.w.tail, p.e + i, lanes), h);
    F16 x = buffered ? load(p.w + i) : decayed<dtype>(job, p.e + i, lanes);
    if (steps) x = fma(minus_c, load(p.z + i), x);
    encode_lanes<dtype>(job.w, p.e + i, x, load(p.random + i), in, lanes);
  });
}
template <DType dtype>
static void finish_update(const UpdateJob& job, const UpdatePiece& p) {
  switch (job.dir.mask.kind) {
    case MaskKind::all:
      return finish_update<dtype, MaskKind::all>(job, p);
    case MaskKind::small:
      return finish_update<dtype, MaskKind::small>(job, p);
    case MaskKind::large:
      return finish_update<dtype, MaskKind::large>(job, p);
    case MaskKind::random:
      return finish_update<dtype, MaskKind::random>(job, p);
  }
}

// Elements [e, e + n) of what the caller made, whose first row is row0.
static void copy_given(const UpdateJob& job, int64_t row0, int64_t e, int64_t n, float* to) {
  for (int64_t done = 0; done < n;) {
    const int64_t row = (e + done) / job.w.cols, col = (e + done) % job.w.cols;
    const int64_t piece = job.w.cols - col < n - done ? job.w.cols - col : n - done;
    const int64_t at = (row - row0) * job.ld_given + col;
    memcpy(to + done, job.given + at, static_cast<size_t>(piece) * sizeof(float));
    done += piece;
  }
}

template <DType dtype>
static void update_as(const UpdateJob& job, int64_t row0, int64_t n_rows) {
  alignas(64) float w[kWindow + kVecLanes], z[kWindow + kVecLanes];
  alignas(64) uint32_t random[kWindow + kVecLanes], mask_bits[kWindow + kVecLanes];
  Stream direction = job.dir.stream, rounding = direction;
  rounding.purpose = Purpose::rounding;
  rounding.query = 0;
  for_windows(static_cast<uint64_t>(row0 * job.w.cols), n_rows * job.w.cols, [&](uint64_t e, int64_t n) {
    const int64_t at = static_cast<int64_t>(e - window_of(e));
    UpdatePiece p{static_cast<int64_t>(e) - job.w.first, n, z + at, random + at, mask_bits + at, w + at};
    // Rows without a gap between them are read where they are.
    const bool in_place = job.given && job.ld_given == job.w.cols;
    if (in_place) p.z = job.given + (static_cast<int64_t>(e) - row0 * job.w.cols);
    if (job.n_queries > 1) start_update<dtype>(job, p);
    for (int q = 0; q < job.n_queries; ++q) {
      direction.query = static_cast<uint32_t>(q);
      if (in_place) break;
      if (job.given)
        copy_given(job, row0, static_cast<int64_t>(e), n, z + at);
      else
        fill_noise(job.dir.noise, direction, e, n, z);
      if (q + 1 < job.n_queries) step_query(job.c[q], p);
    }
    if (dtype == DType::BF16) fill_bits<16>(rounding, e, n, random);
    if (dtype == DType::BF16T8) fill_bits<8>(rounding, e, n, random);
    if (job.dir.mask.kind == MaskKind::random) fill_bits<16>(mask_stream(direction), e, n, mask_bits);
    finish_update<dtype>(job, p);
  });
}

// The other rules: buffers from pass to pass, so that none is compiled for every rule, mask and format.

// buffer <- sum over queries of c_q z_q.
static void fill_estimate(const UpdateJob& job, uint32_t step, const float* c, uint64_t e, int64_t n,
                          float* z, float* buffer) {
  Stream direction = job.dir.stream;
  direction.step = step;
  const int64_t begin = static_cast<int64_t>(e - window_of(e)) / 16 * 16;
  const int64_t end = static_cast<int64_t>(e - window_of(e)) + n;
  for (int q = 0; q < job.n_queries; ++q) {
    direction.query = static_cast<uint32_t>(q);
    fill_noise(job.dir.noise, direction, e, n, z);
    const F16 c_q = set1(c[q]);
    for (int64_t i = begin; i < end; i += 16)
      store(buffer + i, fma(c_q, load(z + i), q == 0 ? zero_f() : load(buffer + i)));
  }
}

// Which lanes of a piece are in the selection, all ones or zero.
template <DType dtype, MaskKind mask>
static void select_piece(const UpdateJob& job, const UpdatePiece& p, uint32_t* in) {
  const F16 h = set1(job.dir.mask.h);
  const U16 keep = set1(job.dir.mask.keep), ones = set1(0xFFFFFFFFu);
  for_lanes(0, p.n, [&](int64_t i, auto lanes) {
    M16 m = first_lanes(16);
    if constexpr (mask == MaskKind::random) m = less_signed(load(p.mask_bits + i), keep);
    if constexpr (mask == MaskKind::small || mask == MaskKind::large)
      m = in_selection<mask>(decode_lanes<dtype>(job.w.data, job.w.tail, p.e + i, lanes), h);
    store(in + i, zero_unless(m, ones));
  });
}
template <DType dtype>
static void select_piece(const UpdateJob& job, const UpdatePiece& p, uint32_t* in) {
  switch (job.dir.mask.kind) {
    case MaskKind::all:
      return select_piece<dtype, MaskKind::all>(job, p, in);
    case MaskKind::small:
      return select_piece<dtype, MaskKind::small>(job, p, in);
    case MaskKind::large:
      return select_piece<dtype, MaskKind::large>(job, p, in);
    case MaskKind::random:
      return select_piece<dtype, MaskKind::random>(job, p, in);
  }
}

// The moments of a piece in memory, or a buffer of them.
static void advance_piece(const Rule& rule, const float* e, int64_t n, float* m, float* v) {
  for_lanes(0, n, [&](int64_t i, auto lanes) {
    F16 a = m ? load(m + i, lanes) : zero_f(), b = v ? load(v + i, lanes) : zero_f();
    advance_moments(rule, load(e + i), &a, &b);
    if (m) store(m + i, a, lanes);
    if (v) store(v + i, b, lanes);
  });
}

// The last estimate: moments and p.w, where in.
static void step_piece(const Rule& rule, const UpdatePiece& p, const float* e, const uint32_t* in, float* m,
                       float* v) {
  for_lanes(0, p.n, [&](int64_t i, auto lanes) {
    const M16 chosen = load(in + i) == set1(0xFFFFFFFFu);
    const F16 old_m = m ? load(m + i, lanes) : zero_f(), old_v = v ? load(v + i, lanes) : zero_f();
    F16 a = old_m, b = old_v;
    const F16 x = load(e + i);
    advance_moments(rule, x, &a, &b);
    store(p.w + i, rule_step(rule, load(p.w + i), x, a, b));
    if (m) store(m + i, select(chosen, a, old_m), lanes);
    if (v) store(v + i, select(chosen, b, old_v), lanes);
  });
}

template <DType dtype>
static void average_as(const UpdateJob& job, int64_t row0, int64_t n_rows) {
  alignas(64) float w[kWindow + kVecLanes], z[kWindow + kVecLanes], estimate[kWindow + kVecLanes],
      moments[2][kWindow + kVecLanes];
  alignas(64) uint32_t random[kWindow + kVecLanes], mask_bits[kWindow + kVecLanes], in[kWindow + kVecLanes];
  Stream rounding = job.dir.stream;
  rounding.purpose = Purpose::rounding;
  rounding.query = 0;
  const bool kept = job.moments[0] != nullptr;
  for_windows(static_cast<uint64_t>(row0 * job.w.cols), n_rows * job.w.cols, [&](uint64_t e, int64_t n) {
    const int64_t at = static_cast<int64_t>(e - window_of(e)), first = static_cast<int64_t>(e) - job.w.first;
    const UpdatePiece p{first, n, z + at, random + at, mask_bits + at, w + at};
    if (job.dir.mask.kind == MaskKind::random) fill_bits<16>(mask_stream(job.dir.stream), e, n, mask_bits);
    if (dtype == DType::BF16) fill_bits<16>(rounding, e, n, random);
    if (dtype == DType::BF16T8) fill_bits<8>(rounding, e, n, random);
    start_update<dtype>(job, p);
    select_piece<dtype>(job, p, in + at);
    float* const m = kept ? job.moments[0] + first : moments[0] + at;
    float* const v = kept ? (job.moments[1] ? job.moments[1] + first : nullptr) : moments[1] + at;
    if (!kept) {
      memset(m, 0, static_cast<size_t>(n) * sizeof(float));
      memset(v, 0, static_cast<size_t>(n) * sizeof(float));
    }
    for (int i = 0; i < job.n_past; ++i) {
      fill_estimate(job, job.past[i].step, job.past[i].c, e, n, z, estimate);
      advance_piece(job.rule, estimate + at, n, m, v);
    }
    fill_estimate(job, job.dir.stream.step, job.c, e, n, z, estimate);
    step_piece(job.rule, p, estimate + at, in + at, m, v);
    for_lanes(0, n, [&](int64_t i, auto lanes) {
      encode_lanes<dtype>(job.w, p.e + i, load(p.w + i), load(p.random + i),
                          load(in + at + i) == set1(0xFFFFFFFFu), lanes);
    });
  });
}

template <DType dtype>
static void update_by_rule(const UpdateJob& job, int64_t row0, int64_t n_rows) {
  if (job.rule.kind == RuleKind::sgd) return update_as<dtype>(job, row0, n_rows);
  average_as<dtype>(job, row0, n_rows);
}

static void update_rows(const UpdateJob& job, int64_t row0, int64_t n_rows) {
  switch (job.w.dtype) {
    case DType::F32:
      return update_by_rule<DType::F32>(job, row0, n_rows);
    case DType::BF16:
      return update_by_rule<DType::BF16>(job, row0, n_rows);
    case DType::BF16T8:
      return update_by_rule<DType::BF16T8>(job, row0, n_rows);
    case DType::F16:
    case DType::NF4:
    case DType::I8:
      return;  // never trains: refused before it comes here
  }
}
