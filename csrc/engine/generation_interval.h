// How often generations are written: the engine decides by it, the planner says it beforehand.
#pragma once
#include <algorithm>
#include <cmath>

namespace smezo {

// Opening the run again shall take a minute at most beside reading the model. Half of it, in seconds of
// replay as they were measured when the run was opened: the machine may be busier then, or have fewer
// threads.
constexpr double kLongestReplay = 30;
// Until one has been written, or measured.
constexpr double kGuessedWriteBytesPerS = 5e8;

// Of streamed state. k steps between generations cost k (k + 1) / 2 applications of a record and one writing:
// least at sqrt(2 writing / application). record_s 0: not known.
inline int steps_between_generations(double writing_s, double record_s) {
  constexpr double kMost = 64;
  if (record_s <= 0) return static_cast<int>(kMost);
  return static_cast<int>(std::clamp(std::round(std::sqrt(2 * writing_s / record_s)), 1.0, kMost));
}

}  // namespace smezo
