// Pieces made by all threads and taken one after another in their order, in the memory of two waves of them:
// while one wave is made, the one before is taken.
#pragma once
#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "base/threads.h"

namespace smezo {

constexpr int kPiecesPerThread = 4;

// make(piece, thread, buffer) fills a buffer of `buffer_bytes` (64-byte multiples) and may run anywhere;
// take(piece, buffer) runs on one thread at a time, in order. What either throws ends the run and comes out
// here.
inline void in_order(ThreadPool& pool, int64_t n_pieces, int64_t buffer_bytes,
                     const std::function<void(int64_t, int, uint8_t*)>& make,
                     const std::function<void(int64_t, const uint8_t*)>& take) {
  const int64_t wave = std::min<int64_t>(n_pieces, kPiecesPerThread * pool.size());
  std::vector<uint8_t> memory[2];
  const auto buffer = [&](int64_t piece) {
    return memory[piece / wave % 2].data() + piece % wave * buffer_bytes;
  };
  for (int64_t begin = 0; begin < n_pieces + wave && n_pieces > 0; begin += wave) {
    if (begin < 2 * wave) memory[begin / wave].resize(static_cast<size_t>(wave * buffer_bytes));
    const int64_t n_made = std::clamp<int64_t>(n_pieces - begin, 0, wave);
    // Item 0 takes the wave before; the threads without it make this one.
    pool.run(1 + n_made, [&](int64_t item, int thread) {
      if (item > 0) return make(begin + item - 1, thread, buffer(begin + item - 1));
      for (int64_t p = std::max<int64_t>(begin - wave, 0); p < std::min(begin, n_pieces); ++p)
        take(p, buffer(p));
    });
  }
}

}  // namespace smezo
