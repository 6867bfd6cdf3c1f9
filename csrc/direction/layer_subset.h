// Which layers sit a step out (LeZO, arXiv 2410.09823, section 3): a function of (run seed, step).
#pragma once
#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "noise/address.h"
#include "noise/philox.h"

namespace smezo {

// [n_layers]: the n_resting with the largest draws rest; of equal draws the later one. The rest takes part.
inline std::vector<bool> resting_layers(uint64_t run_seed, uint32_t step, int64_t n_layers,
                                        int64_t n_resting) {
  const Stream s{run_seed, step, 0, Purpose::subset, 0};
  std::vector<std::pair<uint64_t, int64_t>> draws;
  for (int64_t l = 0; l < n_layers; ++l) draws.emplace_back(bits_at(s, static_cast<uint64_t>(l), 32), l);
  std::sort(draws.begin(), draws.end());
  std::vector<bool> out(static_cast<size_t>(n_layers), false);
  for (int64_t i = n_layers - n_resting; i < n_layers; ++i)
    out[static_cast<size_t>(draws[static_cast<size_t>(i)].second)] = true;
  return out;
}

}  // namespace smezo
