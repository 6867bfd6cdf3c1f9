// Random bits of a window in shared memory, and pieces of it in a thread's registers. A group's four words of
// 16 Philox blocks lie word by word, so the words of consecutive elements are consecutive:
//
//   words[group * 64 + word * 16 + lane]
//
// One thread makes a whole Philox block; another, which has 8 consecutive elements, takes its bits from 8
// consecutive words at one shift. Nothing is made twice, and weights are read 16 bytes a thread.
#pragma once
#include "direction/direction.h"
#include "kernels/cuda/job.h"

namespace smezo::cuda {

// Shared memory of a CUDA block: 16 KiB, so that no architecture's occupancy suffers from it.
struct Shared {
  alignas(16) uint32_t noise[kWindow];      // up to 32 bits an element
  alignas(16) uint32_t mask[kWindow / 2];   // 16 bits
  alignas(16) uint32_t round[kWindow / 2];  // 16 bits, dither or rounding
};

// The part of thread t in filling `words` with the window's random bits, `bits` an element. Gaussian: the
// words become normals.
SMEZO_HD void fill(const Stream& s, int64_t window, uint32_t bits, bool gaussian, int t, uint32_t* words) {
  const uint64_t first = static_cast<uint64_t>(window) / 128 * bits;  // block_of(window, bits)
  for (int i = t; i < 16 * static_cast<int>(bits); i += kThreads) {
    Block b = block_at(s, first + static_cast<uint64_t>(i));
    if (gaussian) {
      float z[4];
      gaussian_values(b, z);
      for (int j = 0; j < 4; ++j) b.w[j] = f32_bits(z[j]);
    }
    uint32_t* to = words + i / 16 * 64 + i % 16;
    for (int j = 0; j < 4; ++j) to[16 * j] = b.w[j];
  }
}

SMEZO_HD void fill_noise(const TensorDirection& d, uint32_t query, int64_t window, int t, Shared& shared) {
  Stream s = d.stream;
  s.query = query;
  fill(s, window, noise_bits(d.noise), d.noise == NoiseKind::gaussian, t, shared.noise);
}

// Nothing to do but for the random mask. Its bits are those of step 0, query 0.
SMEZO_HD void fill_mask(const TensorDirection& d, int64_t window, int t, Shared& shared) {
  if (d.mask.kind != MaskKind::random) return;
  Stream s = d.stream;
  s.purpose = Purpose::mask;
  s.step = 0;
  s.query = 0;
  fill(s, window, 16, false, t, shared.mask);
}

// The bits of elements p..p+7 of the window; p is a multiple of 8.
SMEZO_HD void take_bits(const uint32_t* words, uint32_t bits, int p, uint32_t* out) {
  const uint32_t at = static_cast<uint32_t>(p), first = bit_of(at, bits);
  const uint32_t* from = words + at * bits / 2048 * 64 + first / 32 * 16 + at % 16;
  const uint32_t keep = bits == 32 ? ~0u : (1u << bits) - 1;
  for (int i = 0; i < kPiece; ++i) out[i] = from[i] >> first % 32 & keep;
}

SMEZO_HD void take_noise(NoiseKind kind, const Shared& shared, int p, float* z) {
  uint32_t bits[kPiece];
  take_bits(shared.noise, noise_bits(kind), p, bits);
  for (int i = 0; i < kPiece; ++i) {
    z[i] = kind == NoiseKind::gaussian    ? f32_from_bits(bits[i])
           : kind == NoiseKind::gaussian8 ? gaussian8_value(bits[i])
                                          : rademacher_value(bits[i]);
  }
}

// mask_at of kinds that look at the weight; the kind is known where this is compiled in, so that the random
// kind's Philox is not.
template <MaskKind kind>
SMEZO_HD uint32_t selected(const TensorDirection& dir, const float* w) {
  TensorDirection d = dir;
  d.mask.kind = kind;
  uint32_t in = 0;
  for (int i = 0; i < kPiece; ++i) in |= static_cast<uint32_t>(mask_at(d, 0, w[i])) << i;
  return in;
}

// Bit i: element p + i, whose stored value is w[i], is in the selection.
SMEZO_HD uint32_t take_mask(const TensorDirection& d, const Shared& shared, int p, const float* w) {
  switch (d.mask.kind) {
    case MaskKind::all:
      return 0xFF;
    case MaskKind::small:
      return selected<MaskKind::small>(d, w);
    case MaskKind::large:
      return selected<MaskKind::large>(d, w);
    case MaskKind::random: {
      uint32_t bits[kPiece], in = 0;
      take_bits(shared.mask, 16, p, bits);
      for (int i = 0; i < kPiece; ++i) in |= static_cast<uint32_t>(bits[i] < d.mask.keep) << i;
      return in;
    }
  }
  return 0;
}

// The elements of a range that a thread works on in a window: e..e+7, of which bit i of `in` says whether the
// range has e + i.
struct Piece {
  int p;  // place in the window
  int64_t e;
  uint32_t in;
  bool whole;  // may be moved as vectors
};

SMEZO_HD int within(int64_t i) { return i < 0 ? 0 : i > kPiece ? kPiece : static_cast<int>(i); }

SMEZO_HD Piece piece_of(const Range& r, int64_t window, int t) {
  const int64_t e = window + t * kPiece;
  const int from = within(r.begin - e), to = within(r.end - e);
  const uint32_t in = to > from ? 0xFFu >> (kPiece - to + from) << from : 0;
  return {t * kPiece, e, in, r.whole_pieces && in == 0xFF};
}

}  // namespace smezo::cuda
