// Static index sets: which elements of a tensor train, as a sorted list (SensZOQ, arXiv 2406.02913).
#pragma once
#include <cstdint>

#include "noise/address.h"
#include "noise/philox.h"

namespace smezo {

// Elements of a random set: `fraction` of n, at least one.
inline int64_t n_indexed(int64_t n, double fraction) {
  const int64_t k = static_cast<int64_t>(static_cast<double>(n) * fraction + 0.5);
  return k < 1 ? 1 : k > n ? n : k;
}

// The i-th element of a random set of k among n: [0, n) is cut into k runs whose lengths differ by one at
// most, and each gives one element, uniformly. Every element is in with probability k / n, the list is sorted
// by itself, and making it costs k draws, not n.
inline int64_t random_index_at(uint64_t run_seed, uint32_t tensor_id, int64_t n, int64_t k, int64_t i) {
  const auto edge = [&](int64_t j) {
    const int64_t whole = n / k, rest = n % k;  // j * n / k without overflow
    return j * whole + j * rest / k;
  };
  const int64_t begin = edge(i), length = edge(i + 1) - begin;
  const Stream s{run_seed, 0, 0, Purpose::subset, tensor_id};
  const uint64_t u = bits_at(s, static_cast<uint64_t>(i), 32);
  return begin + static_cast<int64_t>((u * static_cast<uint64_t>(length)) >> 32);
}

}  // namespace smezo
