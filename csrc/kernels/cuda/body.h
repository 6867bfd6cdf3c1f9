// The kernels, written once: a body is what one CUDA block does, window after window, in phases. The device
// runs a phase with a thread for each t and waits at its end (kernels.cu); the host runs t = 0, 1, ... one
// after the other (host_launch.h). A Block brings
//
//   shared            the block's Shared
//   kStates           threads whose state lies in one array: 1 on the device (registers), all on the host
//   each(block, f)    f(t) for every t in [0, kThreads), finished for all before it returns; found by
//   argument-dependent lookup
//
// What a thread keeps between phases is state[t % kStates].
#pragma once
#include "kernels/cuda/piece.h"

namespace smezo::cuda {

// The window that CUDA block `index` begins with; it goes on by n_blocks windows.
SMEZO_HD int64_t first_window(const Range& r, int64_t index) { return (r.begin / kWindow + index) * kWindow; }

template <class Block>
SMEZO_HD void run(Block& block, int64_t index, int64_t n_blocks, const NoiseJob& job) {
  const Range& range = job.range;
  for (int64_t window = first_window(range, index); window < range.end; window += n_blocks * kWindow) {
    each(block, [&](int t) { fill_noise(job.dir, job.dir.stream.query, window, t, block.shared); });
    each(block, [&](int t) {
      const Piece piece = piece_of(range, window, t);
      float z[kPiece];
      take_noise(job.dir.noise, block.shared, piece.p, z);
      put_f32(job.out, piece.e - range.begin, piece, z);
    });
  }
}

template <class Block>
SMEZO_HD void run(Block& block, int64_t index, int64_t n_blocks, const MaskJob& job) {
  const Range& range = job.range;
  const MaskKind kind = job.dir.mask.kind;
  const bool looks = kind == MaskKind::small || kind == MaskKind::large;
  for (int64_t window = first_window(range, index); window < range.end; window += n_blocks * kWindow) {
    each(block, [&](int t) { fill_mask(job.dir, window, t, block.shared); });
    each(block, [&](int t) {
      const Piece piece = piece_of(range, window, t);
      float w[kPiece] = {};
      if (looks) read_piece(job.w, piece, Compute::f32, w, nullptr);
      const uint32_t selected = take_mask(job.dir, block.shared, piece.p, w);
      uint8_t* out = job.out + (piece.e - range.begin);
      if (piece.whole) {
        alignas(8) uint32_t words[2] = {};
        for (int i = 0; i < kPiece; ++i) words[i / 4] |= (selected >> i & 1) << 8 * (i % 4);
        copy<8>(out, words);
      } else {
        for (int i = 0; i < kPiece; ++i) {
          if (piece.in >> i & 1) out[i] = selected >> i & 1;
        }
      }
    });
  }
}

// Eight operands of a piece to their row and column of a strip; zeros after the last column.
template <class T, class Bits>
SMEZO_HD void put_strip(T* out, const ProduceJob& p, const Piece& piece, const float* value, Bits bits) {
  const int64_t cols = p.cols, gap = p.out.ld - cols;
  const int64_t at = piece.e - p.range.begin;
  if (piece.whole) {  // one row: cols is a multiple of 8, or there is only one
    const int64_t row = gap != 0 ? at / cols : 0, to = at + row * gap;
    constexpr int bytes = kPiece * static_cast<int>(sizeof(T));
    alignas(16) T values[kPiece];
    for (int i = 0; i < kPiece; ++i) values[i] = bits(value[i]);
    copy<bytes>(out + to, values);
    if (gap != 0 && at - row * cols + kPiece == cols) {
      for (int64_t i = 0; i < gap; ++i) out[to + kPiece + i] = T{0};
    }
    return;
  }
  for (int i = 0; i < kPiece; ++i) {
    if ((piece.in >> i & 1) == 0) continue;
    const int64_t row = gap != 0 ? (at + i) / cols : 0, to = at + i + row * gap;
    out[to] = bits(value[i]);
    if (gap != 0 && at + i - row * cols + 1 == cols) {
      for (int64_t k = 1; k <= gap; ++k) out[to + k] = T{0};
    }
  }
}

SMEZO_HD void put_operands(void* out, const ProduceJob& p, const Piece& piece, const float* value) {
  if (out == nullptr || piece.in == 0) return;
  if (p.job.compute == Compute::f32) {
    put_strip(static_cast<uint32_t*>(out), p, piece, value, [](float x) { return f32_bits(x); });
  } else {
    put_strip(static_cast<uint16_t*>(out), p, piece, value,
              [](float x) { return static_cast<uint16_t>(f32_bits(x) >> 16); });
  }
}

template <class Block>
SMEZO_HD void run(Block& block, int64_t index, int64_t n_blocks, const ProduceJob& p) {
  struct Kept {
    float w[kPiece];
    uint32_t selected;
  };
  const OperandJob& job = p.job;
  const Range& range = p.range;
  const bool dither = takes_dither(job);
  Kept kept[Block::kStates];
  for (int64_t window = first_window(range, index); window < range.end; window += n_blocks * kWindow) {
    each(block, [&](int t) {
      Kept& mine = kept[t % Block::kStates];
      const Piece piece = piece_of(range, window, t);
      float plain[kPiece];
      read_piece(job.w, piece, job.compute, mine.w, plain);
      put_operands(p.out.plain, p, piece, plain);
      if (p.out.n_queries > 0) fill_mask(job.dir, window, t, block.shared);
    });
    for (int q = 0; q < p.out.n_queries; ++q) {
      const uint32_t query = job.dir.stream.query + static_cast<uint32_t>(q);
      each(block, [&](int t) {
        fill_noise(job.dir, query, window, t, block.shared);
        Stream s = dither_stream(job);
        s.query = query;
        if (dither) fill(s, window, 16, false, t, block.shared.round);
      });
      each(block, [&](int t) {
        Kept& mine = kept[t % Block::kStates];
        const Piece piece = piece_of(range, window, t);
        if (q == 0) mine.selected = take_mask(job.dir, block.shared, piece.p, mine.w);
        float plus[kPiece], minus[kPiece];
        uint32_t random[kPiece] = {};
        take_noise(job.dir.noise, block.shared, piece.p, minus);
        if (dither) take_bits(block.shared.round, 16, piece.p, random);
        for (int i = 0; i < kPiece; ++i) {
          const float mz = mine.selected >> i & 1 ? minus[i] : 0.0f;
          const Operands o = job.mode == OperandMode::split ? Operands{0, noise_operand(job.compute, mz)}
                                                            : perturbed(job, mine.w[i], mz, random[i]);
          plus[i] = o.plus;
          minus[i] = o.minus;
        }
        put_operands(p.out.plus[q], p, piece, plus);
        put_operands(p.out.minus[q], p, piece, minus);
      });
    }
  }
}

template <class Block>
SMEZO_HD void run(Block& block, int64_t index, int64_t n_blocks, const RecordJob& r) {
  struct Kept {
    float w[kPiece];
    uint32_t selected;
  };
  const UpdateJob& job = r.job;
  const Range& range = r.range;
  const uint32_t rounding = rounding_bits(job.w.dtype);
  Stream rounding_stream = job.dir.stream;
  rounding_stream.purpose = Purpose::rounding;
  rounding_stream.query = 0;
  Kept kept[Block::kStates];
  for (int64_t window = first_window(range, index); window < range.end; window += n_blocks * kWindow) {
    each(block, [&](int t) {
      Kept& mine = kept[t % Block::kStates];
      const Piece piece = piece_of(range, window, t);
      read_piece(job.w, piece, Compute::f32, mine.w, nullptr);
      mine.selected = piece.in;
      fill_mask(job.dir, window, t, block.shared);
      // The other half of the threads than that which makes 8-bit noise.
      if (rounding != 0) fill(rounding_stream, window, rounding, false, t ^ kThreads / 2, block.shared.round);
    });
    for (int q = 0; q < job.n_queries || q == 0; ++q) {
      const bool steps = q < job.n_queries;
      each(block, [&](int t) {
        if (steps) fill_noise(job.dir, static_cast<uint32_t>(q), window, t, block.shared);
      });
      each(block, [&](int t) {
        Kept& mine = kept[t % Block::kStates];
        const Piece piece = piece_of(range, window, t);
        if (q == 0) {
          mine.selected &= take_mask(job.dir, block.shared, piece.p, mine.w);
          for (int i = 0; i < kPiece; ++i) mine.w[i] = sgd_decay(mine.w[i], job.decay);
        }
        if (steps) {
          float z[kPiece];
          take_noise(job.dir.noise, block.shared, piece.p, z);
          for (int i = 0; i < kPiece; ++i) mine.w[i] = sgd_step(mine.w[i], z[i], r.c[q]);
        }
        if (q + 1 < job.n_queries) return;
        uint32_t random[kPiece] = {};
        if (rounding != 0) take_bits(block.shared.round, rounding, piece.p, random);
        write_piece(job.w, piece, mine.selected, mine.w, random);
      });
    }
  }
}

}  // namespace smezo::cuda
