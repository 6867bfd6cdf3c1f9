// How often generations are written: the engine decides by it, the planner says it beforehand.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "direction/low_rank.h"

namespace smezo {

// Opening the run again shall take a minute at most beside reading the model. Half of it, in seconds of
// replay as they were measured when the run was opened: the machine may be busier then, or have fewer
// threads.
constexpr double kLongestReplay = 30;
// Until one has been written, or measured.
constexpr double kGuessedWriteBytesPerS = 5e8;

// Records that wait between generations, if not said.
constexpr int kMostWaiting = 64;

// Of streamed state. k steps between generations cost k (k + 1) / 2 applications of a record and one writing:
// least at sqrt(2 writing / application). record_s 0: not known.
inline int steps_between_generations(double writing_s, double record_s) {
  if (record_s <= 0) return kMostWaiting;
  return static_cast<int>(
      std::clamp(std::round(std::sqrt(2 * writing_s / record_s)), 1.0, double{kMostWaiting}));
}

// Records that wait make their factors at every visit: of two epochs at most, for which memory is planned,
// and of one where factors take long to make. 0: no end to them.
inline int64_t steps_that_may_wait(const LowRank& d) {
  return d.refresh == 0 ? 0 : static_cast<int64_t>(d.refresh) * (d.kind == LowRankKind::uzv ? 1 : 2);
}
// Most records that a visit applies. every: steps between generations, 0: chosen by what costs least.
inline int most_waiting(const LowRank& d, int every) {
  const int64_t most = every > 0 ? every : kMostWaiting, epochs = steps_that_may_wait(d);
  return static_cast<int>(epochs > 0 ? std::min(most, epochs) : most);
}
// Do those from step `first` on have to be applied before step `next` begins?
inline bool waited_long_enough(const LowRank& d, uint32_t first, uint32_t next) {
  return d && epoch_of(d, next) - epoch_of(d, first) >= (d.kind == LowRankKind::uzv ? 1u : 2u);
}

}  // namespace smezo
