// A piece of a stored weight to fp32 and back. Its bytes are moved to registers (as vectors where the piece
// is whole) and there seen as a weight of 8 elements of their own, on which the element functions of
// format/codec.h work.
#pragma once
#include "kernels/cuda/window.h"
#include "kernels/element.h"

namespace smezo::cuda {

// `bytes` (4, 8 or a multiple of 16) at addresses that are multiples of 16, or of `bytes` if that is less.
template <int bytes>
SMEZO_HD void copy(void* to, const void* from) {
#if defined(__CUDA_ARCH__)
  if constexpr (bytes == 4) *static_cast<uint32_t*>(to) = *static_cast<const uint32_t*>(from);
  if constexpr (bytes == 8) *static_cast<uint2*>(to) = *static_cast<const uint2*>(from);
  if constexpr (bytes >= 16) {
#pragma unroll
    for (int i = 0; i < bytes / 16; ++i) static_cast<uint4*>(to)[i] = static_cast<const uint4*>(from)[i];
  }
#else
  memcpy(to, from, bytes);
#endif
}

struct Raw {
  alignas(16) unsigned char data[4 * kPiece];
  alignas(8) int8_t tail[kPiece];
  float absmax[kPiece];  // NF4: entry 0, which all share; I8: of each element
};

// The piece as a weight whose element 0 is the piece's first.
template <DType dtype>
SMEZO_HD WeightView view_of(Raw& raw) {
  WeightView v;
  v.data = raw.data;
  v.tail = raw.tail;
  v.dtype = dtype;
  v.rows = kPiece;
  v.cols = 1;  // I8: a scale an element
  v.scales.block = kPiece;
  v.scales.absmax = raw.absmax;
  return v;
}

template <DType d>  // bits of an element in `data`
constexpr int kPlaneBits = d == DType::F32   ? 32
                           : d == DType::NF4 ? 4
                           : d == DType::I8  ? 8
                                             : 16;

template <DType dtype>
SMEZO_HD void read_raw(const WeightView& w, const Piece& piece, Raw& raw) {
  constexpr int bits = kPlaneBits<dtype>;
  const int64_t at = piece.e - w.first;
  const auto* data = static_cast<const unsigned char*>(w.data);
  if (piece.whole) {
    copy<bits>(raw.data, data + at * bits / 8);
    if constexpr (dtype == DType::BF16T8) copy<8>(raw.tail, w.tail + at);
    if constexpr (dtype == DType::I8) {
      const float absmax = w.scales.absmax[piece.e / w.cols];
      for (int i = 0; i < kPiece; ++i) raw.absmax[i] = absmax;
    }
  } else {
    for (int i = 0; i < kPiece; ++i) {
      raw.absmax[i] = 0;
      raw.tail[i] = 0;
      for (int b = i * bits / 8; b < (i + 1) * bits / 8; ++b) raw.data[b] = 0;
    }
    for (int i = 0; i < kPiece; ++i) {
      if ((piece.in >> i & 1) == 0) continue;
      if constexpr (bits == 32) memcpy(raw.data + 4 * i, static_cast<const uint32_t*>(w.data) + at + i, 4);
      if constexpr (bits == 16) memcpy(raw.data + 2 * i, static_cast<const uint16_t*>(w.data) + at + i, 2);
      if constexpr (bits == 8) raw.data[i] = data[at + i];
      if constexpr (bits == 4) raw.data[i / 2] = data[(at + i) / 2];
      if constexpr (dtype == DType::BF16T8) raw.tail[i] = w.tail[at + i];
      if constexpr (dtype == DType::I8) raw.absmax[i] = w.scales.absmax[(piece.e + i) / w.cols];
    }
  }
  if constexpr (dtype == DType::NF4) raw.absmax[0] = piece.in != 0 ? nf4_absmax_at(w, piece.e) : 0;
}

// Decoded values of a piece and, unless `plain` is null, its operands on the plain branch.
template <DType dtype>
SMEZO_HD void read_as(const WeightView& w, const Piece& piece, Compute compute, float* value, float* plain) {
  Raw raw;
  read_raw<dtype>(w, piece, raw);
  const WeightView v = view_of<dtype>(raw);
  for (int i = 0; i < kPiece; ++i) value[i] = decode_at(v, i);
  if (plain == nullptr) return;
  for (int i = 0; i < kPiece; ++i) plain[i] = plain_operand_at(v, i, compute);
}

SMEZO_HD void read_piece(const WeightView& w, const Piece& piece, Compute compute, float* value,
                         float* plain) {
  switch (w.dtype) {
    case DType::F32:
      return read_as<DType::F32>(w, piece, compute, value, plain);
    case DType::F16:
      return read_as<DType::F16>(w, piece, compute, value, plain);
    case DType::BF16:
      return read_as<DType::BF16>(w, piece, compute, value, plain);
    case DType::BF16T8:
      return read_as<DType::BF16T8>(w, piece, compute, value, plain);
    case DType::NF4:
      return read_as<DType::NF4>(w, piece, compute, value, plain);
    case DType::I8:
      return read_as<DType::I8>(w, piece, compute, value, plain);
  }
}

// Stores value[i], rounded with random[i], where bit i of `in` is set; the other elements keep their bits.
template <DType dtype>
SMEZO_HD void write_as(const WeightView& w, const Piece& piece, uint32_t in, const float* value,
                       const uint32_t* random) {
  if (piece.whole) {
    constexpr int bytes = kPlaneBits<dtype>;  // of 8 elements
    const int64_t at = piece.e - w.first;
    auto* data = static_cast<unsigned char*>(w.data) + at * bytes / kPiece;
    Raw raw;
    read_raw<dtype>(w, piece, raw);  // again: cheaper than keeping it in registers meanwhile
    const WeightView v = view_of<dtype>(raw);
    for (int i = 0; i < kPiece; ++i) {
      if (in >> i & 1) encode_at(v, i, value[i], random[i]);
    }
    copy<bytes>(data, raw.data);
    if constexpr (dtype == DType::BF16T8) copy<8>(w.tail + at, raw.tail);
  } else {
    WeightView v = w;
    v.dtype = dtype;
    for (int i = 0; i < kPiece; ++i) {
      if (in >> i & 1) encode_at(v, piece.e + i, value[i], random[i]);
    }
  }
}

SMEZO_HD void write_piece(const WeightView& w, const Piece& piece, uint32_t in, const float* value,
                          const uint32_t* random) {
  if (in == 0) return;
  switch (w.dtype) {
    case DType::F32:
      return write_as<DType::F32>(w, piece, in, value, random);
    case DType::BF16:
      return write_as<DType::BF16>(w, piece, in, value, random);
    case DType::BF16T8:
      return write_as<DType::BF16T8>(w, piece, in, value, random);
    case DType::F16:
    case DType::NF4:
    case DType::I8:
      return;  // never trains: record_job refuses it
  }
}

// Eight floats to out[at..at+7], those of the piece only.
SMEZO_HD void put_f32(float* out, int64_t at, const Piece& piece, const float* value) {
  if (piece.whole) {
    alignas(16) uint32_t words[kPiece];
    for (int i = 0; i < kPiece; ++i) words[i] = f32_bits(value[i]);
    copy<4 * kPiece>(out + at, words);
    return;
  }
  for (int i = 0; i < kPiece; ++i) {
    if (piece.in >> i & 1) out[at + i] = value[i];
  }
}

}  // namespace smezo::cuda
