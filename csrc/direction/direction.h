// A direction is the vector z of one query: noise times mask. `z_at` and `mask_at` are the one definition;
// every vectorised kernel, and CUDA, must give the same bits.
#pragma once
#include <cmath>
#include <cstdint>
#include <limits>

#include "base/host_device.h"
#include "noise/address.h"
#include "noise/normal.h"

namespace smezo {

enum class MaskKind : uint8_t {
  all,     // dense
  small,   // |w| <= h: Sparse-MeZO (arXiv 2402.15751), all ties in
  large,   // |w| >= h: the other end, a control
  random,  // Bernoulli from Purpose::mask at step 0, fixed for the run, a control
};

// Which elements of one tensor take part. Plain data, passed by value to kernels.
struct Mask {
  MaskKind kind = MaskKind::all;
  float h =
      std::numeric_limits<float>::infinity();  // small, large: threshold on the stored 24-bit value (I10)
  uint32_t keep = 65536;                       // random: an element is in when its 16 bits are < keep
};

// One tensor's direction at one query of one step.
struct TensorDirection {
  NoiseKind noise = NoiseKind::gaussian8;
  Mask mask;
  Stream stream;  // purpose is direction; mask bits use the same seed and tensor id with Purpose::mask, step
                  // 0, query 0
};

// Is element e, whose stored value is w (before the record being applied, never a perturbed value), in the
// selection?
SMEZO_HD bool mask_at(const TensorDirection& d, uint64_t e, float w) {
  switch (d.mask.kind) {
    case MaskKind::all:
      return true;
    case MaskKind::small:
      return fabsf(w) <= d.mask.h;
    case MaskKind::large:
      return fabsf(w) >= d.mask.h;
    case MaskKind::random: {
      Stream s = d.stream;
      s.purpose = Purpose::mask;
      s.step = 0;
      s.query = 0;
      return bits_at(s, e, 16) < d.mask.keep;
    }
  }
  return false;
}

// z of element e without its mask.
SMEZO_HD float z_at(const TensorDirection& d, uint64_t e) { return noise_at(d.noise, d.stream, e); }

}  // namespace smezo
