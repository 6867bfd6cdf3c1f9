// What a record's scalars become before they meet a weight. Done once a record in double and rounded once to
// fp32, so that whoever applies the record, whenever, uses the same bits (I3).
#pragma once
#include "base/host_device.h"

namespace smezo {

// c_q = lr g_q / n_queries.
SMEZO_HD float step_coefficient(float lr, float g, int n_queries) {
  return static_cast<float>(static_cast<double>(lr) * static_cast<double>(g) / n_queries);
}
// lr lambda.
SMEZO_HD float decay_coefficient(float lr, double weight_decay) {
  return static_cast<float>(static_cast<double>(lr) * weight_decay);
}

}  // namespace smezo
