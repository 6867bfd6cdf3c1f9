#include "model/pass.h"

#include <algorithm>
#include <numeric>

#include "model/linear.h"

namespace smezo {

Cut cut_of(const Store& store) {
  return {[&store](uint32_t id) { return store.request(id).rows; },
          [&store](uint32_t id) { return store.unit_rows(id); },
          [&store](uint32_t id) { return store.unit_step(id); }};
}

std::vector<Unit> units_of(const std::vector<int64_t>& tensors, const Cut& cut) {
  std::vector<Unit> out;
  for (const int64_t id : tensors) {
    const uint32_t tensor = static_cast<uint32_t>(id);
    const int64_t rows = cut.rows(tensor), step = cut.unit_rows(tensor);
    for (int64_t row0 = 0; row0 < rows; row0 += step)
      out.push_back({tensor, row0, std::min(step, rows - row0)});
  }
  return out;
}

std::vector<Unit> units_of_gated(int64_t gate, int64_t up, const Cut& cut) {
  const uint32_t ids[2] = {static_cast<uint32_t>(gate), static_cast<uint32_t>(up)};
  const int64_t rows = cut.rows(ids[0]);
  // Both begin at the same rows, where either may begin; a working copy beside a streamed weight is cut as
  // the other is.
  const int64_t both = std::lcm(kStripStep, std::lcm(cut.unit_step(ids[0]), cut.unit_step(ids[1])));
  const int64_t fits = std::min(cut.unit_rows(ids[0]), cut.unit_rows(ids[1]));
  const int64_t step = fits < rows ? std::max<int64_t>(fits / both, 1) * both : rows;
  std::vector<Unit> out;
  for (int64_t row0 = 0; row0 < rows; row0 += step) {
    for (const uint32_t id : ids) out.push_back({id, row0, std::min(step, rows - row0)});
  }
  return out;
}

std::vector<Unit> pass_of(const ModelTensors& tensors, bool whole_head, const Cut& cut) {
  std::vector<Unit> out;
  const auto add = [&](const std::vector<Unit>& units) { out.insert(out.end(), units.begin(), units.end()); };
  for (const LayerTensors& l : tensors.layers) {
    add(units_of({l.q, l.k, l.v, l.o}, cut));
    add(units_of_gated(l.gate, l.up, cut));
    add(units_of({l.down}, cut));
  }
  if (whole_head) add(units_of({tensors.head}, cut));
  out.shrink_to_fit();  // the store keeps it
  return out;
}

}  // namespace smezo
