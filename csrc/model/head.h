// The end of the model: logits at label columns, of candidates only, of everything, or only what a
// log-probability needs.
#pragma once
#include <vector>

#include "model/block.h"

namespace smezo {

// x holds the label columns (see run_block). Values as ForwardResult describes them.
std::vector<std::vector<float>> run_head(Forward& f, const ModelTensors& tensors, bool want_logits);

}  // namespace smezo
