// Is a batch something this model can read? Everything later trusts it.
#pragma once
#include "model/batch.h"
#include "model/config.h"

namespace smezo {

// ArgumentError names the token, segment or label. Targets are checked only when they are read.
void check_batch(const Batch& batch, const ModelConfig& config, bool want_logits);

}  // namespace smezo
