#include "store/plan.h"

#include <algorithm>
#include <numeric>

#include "io/range_file.h"

namespace smezo {

int64_t most_unit_bytes(const BaseTensor& t, int64_t rows) {
  // Each part may begin and end within a page.
  const int64_t pages = (t.absmax ? 4 : 2) * RangeFile::kAlign;
  return t.data_range(0, rows).n_bytes + t.absmax_range(0, rows).n_bytes + pages;
}

int64_t plane_bytes(int64_t n, DType dtype) { return (n * plane_element_bytes(dtype) + 63) / 64 * 64; }

int64_t copy_bytes(int64_t n, DType dtype) {
  return plane_bytes(n, dtype) + (dtype == DType::BF16T8 ? (n + 63) / 64 * 64 : 0);
}

bool streams_trained(const StreamOptions& o, const std::vector<TensorRequest>& requests, DType values) {
  int64_t n_bytes = 0;
  bool any = false;
  for (const TensorRequest& r : requests) {
    n_bytes += r.trained ? bytes_of(values, r.rows * r.cols) + r.n_moments * r.moment_bytes(r.rows) : 0;
    any |= r.trained && r.rows > 1;
  }
  return any && (n_bytes > o.budget_bytes / 2 || o.stream_trained);
}

bool is_copied(const TensorRequest& r, DType base, bool keeps_trained) {
  return (r.trained && (keeps_trained || r.rows == 1)) ||
         (r.rows == 1 && base != DType::NF4 && base != DType::I8);
}

int64_t streamed_unit_rows(const BaseTensor& t, const TensorRequest& r, int64_t unit_bytes, DType values) {
  const int64_t step = std::lcm(t.row_multiple(), r.row_step);
  int64_t row_bytes = t.data_range(0, step).n_bytes + t.absmax_range(0, step).n_bytes;
  if (r.trained)
    row_bytes = std::max(row_bytes, bytes_of(values, step * t.cols)) + r.n_moments * r.moment_bytes(step);
  return std::min(r.rows, std::max<int64_t>(1, unit_bytes / std::max<int64_t>(1, row_bytes)) * step);
}

int64_t single_row_bytes(const BaseTensor& t) { return (bytes_of(t.dtype, t.cols) + 63) / 64 * 64; }

ReadJob read_job_for(const Base& base, const Unit& u) {
  const BaseTensor& t = base.tensor(u.tensor_id);
  const auto part = [](const TensorEntry& e, BaseTensor::Range range, int64_t align) {
    return ReadPart{e.shard, e.offset + range.begin, range.n_bytes, static_cast<int32_t>(align)};
  };
  ReadJob job;
  job.parts[0] = part(*t.data, t.data_range(u.row0, u.n_rows), t.data_align());
  if (t.absmax != nullptr) job.parts[1] = part(*t.absmax, t.absmax_range(u.row0, u.n_rows), t.absmax_align());
  return job;
}

std::vector<Unit> units_to_copy(const Base& base, const std::vector<TensorRequest>& requests,
                                int64_t unit_bytes, bool streams_trained) {
  std::vector<Unit> out;
  for (uint32_t id = 0; id < requests.size(); ++id) {
    const TensorRequest& r = requests[id];
    const BaseTensor& t = base.tensor(id);
    if (t.dtype != DType::NF4 || !is_copied(r, t.dtype, !streams_trained)) continue;
    const int64_t step = std::max<int64_t>(1, unit_bytes / r.cols) * t.row_multiple();
    for (int64_t row0 = 0; row0 < r.rows; row0 += step)
      out.push_back({id, row0, std::min(step, r.rows - row0)});
  }
  return out;
}

int64_t least_unit_bytes(const Base& base, const std::vector<TensorRequest>& requests) {
  int64_t most = 0;
  for (uint32_t id = 0; id < requests.size(); ++id) {
    const TensorRequest& r = requests[id];
    if (r.rows == 1) continue;
    const BaseTensor& t = base.tensor(id);
    const int64_t rows = std::min(r.rows, std::lcm(t.row_multiple(), r.row_step));
    // A working copy of it, and its place in a generation: at most fp32.
    const int64_t state =
        r.trained ? 4 * rows * r.cols + r.n_moments * (r.moment_bytes(rows) + RangeFile::kAlign) : 0;
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
  return std::max<int64_t>(ring_bytes / 8 - 4 * RangeFile::kAlign, 1);
}

}  // namespace smezo
