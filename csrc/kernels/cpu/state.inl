// The verbs of kernels.h between a working copy, its base and the packed values of its support. A piece at a
// time, which stays in L1: base values in fp32 to a buffer, from there the fresh copy and which lanes are on
// the support, then a pass for each plane that moves those. A piece knows how many it has in all, so that
// only its last vectors mind where the packed ones end. Included after producer.inl and expand.inl inside the
// namespace of an instruction set.
#pragma once

constexpr int64_t kStatePiece = 2048;

// What a working copy has of x, as fp32 bits (format/split24.h, format/half.h).
template <DType dtype>
SMEZO_VEC U16 nearest_bits(F16 x) {
  if constexpr (dtype == DType::F32) return as_u(x);
  if constexpr (dtype == DType::BF16) return bf16_high(x) & set1(0xFFFF0000u);
  const U16 u = as_u(no_nan_payload(x));
  return (u + set1(0x7Fu) + ((u >> 8) & set1(1u))) & set1(0xFFFFFF00u);
}

// The planes of a working copy, or of packed values, from some element on.
struct Planes {
  void* data;
  int8_t* tail;  // BF16T8
};
template <DType dtype>
SMEZO_VEC Planes planes_at(void* data, int8_t* tail, int64_t i) {
  return {static_cast<char*>(data) + i * (dtype == DType::F32 ? 4 : 2),
          dtype == DType::BF16T8 ? tail + i : nullptr};
}

template <DType dtype>
static void make_fresh(const float* values, int64_t n, Planes to) {
  for_lanes(0, n, [&](int64_t i, auto lanes) {
    const U16 bits = nearest_bits<dtype>(load(values + i));  // the buffer is longer by a vector
    if constexpr (dtype == DType::F32) {
      store(static_cast<float*>(to.data) + i, as_f(bits), lanes);
    } else {
      // The tail is the low byte of the 24 bits as it is, whichever way the rest was rounded.
      constexpr uint32_t half = dtype == DType::BF16T8 ? 0x8000u : 0;
      store_high16(static_cast<uint16_t*>(to.data) + i, bits + set1(half), lanes);
      if constexpr (dtype == DType::BF16T8) store_i8(to.tail + i, bits >> 8, lanes);
    }
  });
}

template <DType dtype>
static void copy_base(const WeightView& base, int64_t e, int64_t n, Planes to) {
  constexpr int64_t size = dtype == DType::F32 ? 4 : 2;
  const int64_t at = e - base.first;
  memcpy(to.data, static_cast<const char*>(base.data) + at * size, static_cast<size_t>(n * size));
  if (dtype != DType::BF16T8) return;
  if (base.dtype == DType::BF16T8)
    memcpy(to.tail, base.tail + at, static_cast<size_t>(n));
  else
    memset(to.tail, 0, static_cast<size_t>(n));
}

// Which lanes of each vector of a piece are on the support.
struct Support {
  uint16_t set[kStatePiece / kVecLanes];
  int64_t n;  // in all
};

template <DType dtype, MaskKind mask>
static void find_support(const float* values, int64_t n, float threshold, Support* out) {
  const F16 h = set1(threshold);
  int64_t count = 0;
  for (int64_t i = 0; i < n; i += kVecLanes) {
    uint32_t set = n - i >= kVecLanes ? 0xFFFFu : (1u << (n - i)) - 1;
    if constexpr (mask != MaskKind::all)
      set &= mask_bits(in_selection<mask>(as_f(nearest_bits<dtype>(load(values + i))), h));
    out->set[i / kVecLanes] = static_cast<uint16_t>(set);
    count += __builtin_popcount(set);
  }
  out->n = count;
}
template <DType dtype>
static void find_support(const float* values, int64_t n, const Mask& mask, Support* out) {
  switch (mask.kind) {
    case MaskKind::all:
      return find_support<dtype, MaskKind::all>(values, n, mask.h, out);
    case MaskKind::small:
      return find_support<dtype, MaskKind::small>(values, n, mask.h, out);
    case MaskKind::large:
      return find_support<dtype, MaskKind::large>(values, n, mask.h, out);
    case MaskKind::random:
      out->n = 0;  // never packed
      memset(out->set, 0, sizeof out->set);
      return;
  }
}

template <class Lanes>
SMEZO_VEC U16 load_plane(const float* p, Lanes lanes) {
  return as_u(load(p, lanes));
}
template <class Lanes>
SMEZO_VEC U16 load_plane(const uint16_t* p, Lanes lanes) {
  return load_u16(p, lanes);
}
template <class Lanes>
SMEZO_VEC U16 load_plane(const int8_t* p, Lanes lanes) {
  return load_i8(p, lanes);
}
template <class Lanes>
SMEZO_VEC void store_plane(float* p, U16 x, Lanes lanes) {
  store(p, as_f(x), lanes);
}
template <class Lanes>
SMEZO_VEC void store_plane(uint16_t* p, U16 x, Lanes lanes) {
  store_u16(p, x, lanes);
}
template <class Lanes>
SMEZO_VEC void store_plane(int8_t* p, U16 x, Lanes lanes) {
  store_i8(p, x, lanes);
}

template <class T>
static void unpack_plane(const Support& support, int64_t n, const void* packed_values, void* plane) {
  const T* packed = static_cast<const T*>(packed_values);
  T* const to = static_cast<T*>(plane);
  const uint16_t* const sets = support.set;
  int64_t left = support.n;
  for_lanes(0, n, [&](int64_t i, auto lanes) {
    const uint32_t set = sets[i / kVecLanes];
    const U16 values = left >= kVecLanes ? expand_from(packed, set, Whole{})
                                         : expand_from(packed, set, Part{static_cast<int>(left)});
    store_plane(to + i, select(lanes_of(set), values, load_plane(to + i, lanes)), lanes);
    packed += __builtin_popcount(set);
    left -= __builtin_popcount(set);
  });
}

template <class T>
static void pack_plane(const Support& support, int64_t n, const void* plane, void* packed_values) {
  const T* const from = static_cast<const T*>(plane);
  T* packed = static_cast<T*>(packed_values);
  const uint16_t* const sets = support.set;
  int64_t left = support.n;
  for_lanes(0, n, [&](int64_t i, auto lanes) {
    const uint32_t set = sets[i / kVecLanes];
    const U16 values = load_plane(from + i, lanes);
    if (left >= kVecLanes)  // what it writes too much, the next ones write again
      compress_to(packed, values, set, Whole{});
    else
      compress_to(packed, values, set, Part{static_cast<int>(left)});
    packed += __builtin_popcount(set);
    left -= __builtin_popcount(set);
  });
}

enum class StateVerb { unpack, pack, count };

template <StateVerb verb, DType dtype>
static int64_t state_pieces(const StateJob& given, int64_t e0, int64_t n) {
  using Value = std::conditional_t<dtype == DType::F32, float, uint16_t>;
  const StateJob job = given;  // planes are written through pointers that could alias it
  const bool copies = keeps_bits(job.base.dtype, dtype);
  const bool moves = verb != StateVerb::unpack || job.packed != nullptr;
  alignas(64) float values[kStatePiece + kVecLanes];
  Support support;
  int64_t done = 0;
  for (int64_t e = e0; e < e0 + n; e += kStatePiece) {
    const int64_t piece = e0 + n - e < kStatePiece ? e0 + n - e : kStatePiece;
    Planes state{}, packed{};
    if (verb != StateVerb::count) {
      state = planes_at<dtype>(job.state.data, job.state.tail, e - job.state.first);
      packed = planes_at<dtype>(job.packed, job.packed_tail, done);
    }
    if (moves || !copies) decode_range(job.base, e, piece, values);
    if (verb == StateVerb::unpack && copies) copy_base<dtype>(job.base, e, piece, state);
    if (verb == StateVerb::unpack && !copies) make_fresh<dtype>(values, piece, state);
    if (!moves) continue;
    find_support<dtype>(values, piece, job.mask, &support);
    done += support.n;
    if (verb == StateVerb::unpack) {
      unpack_plane<Value>(support, piece, packed.data, state.data);
      if (dtype == DType::BF16T8) unpack_plane<int8_t>(support, piece, packed.tail, state.tail);
    }
    if (verb == StateVerb::pack) {
      pack_plane<Value>(support, piece, state.data, packed.data);
      if (dtype == DType::BF16T8) pack_plane<int8_t>(support, piece, state.tail, packed.tail);
    }
  }
  return done;
}

template <StateVerb verb>
static int64_t state_range(const StateJob& job, int64_t e0, int64_t n) {
  switch (job.state.dtype) {
    case DType::F32:
      return state_pieces<verb, DType::F32>(job, e0, n);
    case DType::BF16:
      return state_pieces<verb, DType::BF16>(job, e0, n);
    case DType::BF16T8:
      return state_pieces<verb, DType::BF16T8>(job, e0, n);
    case DType::F16:
    case DType::NF4:
    case DType::I8:
      return 0;  // no working copy is of these
  }
  return 0;
}

static int64_t unpack_state(const StateJob& job, int64_t e0, int64_t n) {
  return state_range<StateVerb::unpack>(job, e0, n);
}
static int64_t pack_state(const StateJob& job, int64_t e0, int64_t n) {
  return state_range<StateVerb::pack>(job, e0, n);
}
static int64_t count_state(const StateJob& job, int64_t e0, int64_t n) {
  return state_range<StateVerb::count>(job, e0, n);
}
