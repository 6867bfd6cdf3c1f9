// Plain SGD on one element, in fp32 (MeZO, arXiv 2305.17333, algorithm 1, with the decay of the AdamW paper,
// 1711.05101, taken first). One record is: sgd_decay, then sgd_step for q = 0, 1, ... in order, then one
// rounding to the stored format. Order and fma are part of the definition: another order gives other bits. An
// element the mask leaves out is not touched.
#pragma once
#include "base/host_device.h"

namespace smezo {

// w <- fma(-decay, w, w). A decay of 0 is no operation at all, so that -0 stays -0.
SMEZO_HD float sgd_decay(float w, float decay) { return decay == 0 ? w : __builtin_fmaf(-decay, w, w); }

// w <- fma(-c, z, w)
SMEZO_HD float sgd_step(float w, float z, float c) { return __builtin_fmaf(-c, z, w); }

}  // namespace smezo
