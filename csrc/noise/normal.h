// Bits -> noise values. Three kinds, all with mean 0 and variance 1, no libm, equal bits on every machine.
// (interface; bodies are being written)
#pragma once
#include <cstdint>

#include "noise/philox.h"

namespace smezo {
enum class NoiseKind : uint8_t { gaussian, gaussian8, rademacher };
// bits_at(stream, e, bits): the `bits` (1, 8, 16, 32) random bits that element e owns, see address.h.
// noise_at(kind, stream, e) -> float
}  // namespace smezo
