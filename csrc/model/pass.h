// The units of a forward, in the order of its visits.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "model/layout.h"
#include "store/store.h"

namespace smezo {

// How the tensors of a store are cut; also of one that is only planned.
struct Cut {
  std::function<int64_t(uint32_t tensor_id)> rows;
  std::function<int64_t(uint32_t tensor_id)> unit_rows, unit_step;  // Store's
};
Cut cut_of(const Store& store);

std::vector<Unit> units_of(const std::vector<int64_t>& tensors, const Cut& cut);
// A gate and its up take turns.
std::vector<Unit> units_of_gated(int64_t gate, int64_t up, const Cut& cut);
// whole_head: all of the vocabulary is asked, not only candidates.
std::vector<Unit> pass_of(const ModelTensors& tensors, bool whole_head, const Cut& cut);

}  // namespace smezo
