#include "store/plan.h"

#include <algorithm>
#include <numeric>

#include "io/uncached.h"

namespace smezo {

int64_t most_unit_bytes(const BaseTensor& t, int64_t rows) {
  // Each part may begin and end within a page.
  const int64_t pages = (t.absmax ? 4 : 2) * UncachedFile::kAlign;
  return t.data_range(0, rows).n_bytes + t.absmax_range(0, rows).n_bytes + pages;
}

int64_t least_unit_bytes(const Base& base, const std::vector<TensorRequest>& requests) {
  int64_t most = 0;
  for (uint32_t id = 0; id < requests.size(); ++id) {
    const TensorRequest& r = requests[id];
    if (r.rows == 1) continue;
    const BaseTensor& t = base.tensor(id);
    const int64_t rows = std::min(r.rows, std::lcm(t.row_multiple(), r.row_step));
    // A working copy of it, and its place in a generation: at most fp32.
    const int64_t state = r.trained ? 4 * rows * r.cols : 0;
    most = std::max(most, most_unit_bytes(t, rows) + state);
  }
  return most;
}

// A gate and its up are held together, and the ring may lose one unit's room where it wraps.
int64_t least_ring_bytes(const Base& base, const std::vector<TensorRequest>& requests) {
  return 3 * least_unit_bytes(base, requests);
}

int64_t ring_bytes_for(const StreamOptions& o, const Base& base, const std::vector<TensorRequest>& requests) {
  constexpr int64_t kMost = int64_t{64} << 20;
  const int64_t least = least_ring_bytes(base, requests);
  return o.ring_bytes > 0 ? o.ring_bytes : std::clamp(o.budget_bytes / 8, least, std::max(kMost, least));
}

int64_t unit_bytes_for(int64_t ring_bytes) {
  return std::max<int64_t>(ring_bytes / 8 - 4 * UncachedFile::kAlign, 1);
}

}  // namespace smezo
