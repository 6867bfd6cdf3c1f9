// A float's bit pattern and back.
#pragma once
#include <cstdint>
#include <cstring>

#include "base/host_device.h"

namespace smezo {

SMEZO_HD uint32_t f32_bits(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  return u;
}
SMEZO_HD float f32_from_bits(uint32_t u) {
  float x;
  memcpy(&x, &u, 4);
  return x;
}

}  // namespace smezo
