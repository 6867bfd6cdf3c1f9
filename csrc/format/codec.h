// The one switch on dtype: a stored element to fp32 and back.
#pragma once
#include <cstdint>

#include "base/host_device.h"
#include "base/view.h"
#include "format/half.h"
#include "format/int8.h"
#include "format/nf4.h"
#include "format/split24.h"

namespace smezo {

SMEZO_HD float decode_at(const WeightView& w, int64_t e) {
  switch (w.dtype) {
    case DType::F32:
      return static_cast<const float*>(w.data)[e - w.first];
    case DType::F16:
      return fp16_to_f32(static_cast<const uint16_t*>(w.data)[e - w.first]);
    case DType::BF16:
      return bf16_to_f32(static_cast<const uint16_t*>(w.data)[e - w.first]);
    case DType::BF16T8:
      return u24_to_f32(join24({static_cast<const uint16_t*>(w.data)[e - w.first], w.tail[e - w.first]}));
    case DType::NF4:
      return nf4_at(w, e);
    case DType::I8:
      return int8_at(w, e);
  }
  return 0;
}

// Random bits that rounding one element of a dtype takes; 0: it is stored as it is (F32) or to nearest (F16,
// which never trains).
SMEZO_HD uint32_t rounding_bits(DType d) { return d == DType::BF16T8 ? 8 : d == DType::BF16 ? 16 : 0; }

// Stores x, rounded stochastically with `random` (rounding_bits(w.dtype) of them). Quantized weights are
// never written (nothing happens).
SMEZO_HD void encode_at(const WeightView& w, int64_t e, float x, uint32_t random) {
  switch (w.dtype) {
    case DType::F32:
      static_cast<float*>(w.data)[e - w.first] = x;
      return;
    case DType::F16:
      static_cast<uint16_t*>(w.data)[e - w.first] = f32_to_fp16(x);
      return;
    case DType::BF16:
      static_cast<uint16_t*>(w.data)[e - w.first] = f32_to_bf16_stochastic(x, random);
      return;
    case DType::BF16T8: {
      const Split24 s = split24(f32_to_u24(x, random));
      static_cast<uint16_t*>(w.data)[e - w.first] = s.hi;
      w.tail[e - w.first] = s.tail;
      return;
    }
    case DType::NF4:
    case DType::I8:
      return;
  }
}

// What encode_nearest_at would make of x, decoded; `d` holds trained values.
SMEZO_HD float nearest_value(DType d, float x) {
  return d == DType::BF16 ? round_bf16(x) : d == DType::BF16T8 ? u24_to_f32(f32_to_u24_nearest(x)) : x;
}

// Stores x rounded to nearest: conversion of a base value, where no training step is being rounded.
SMEZO_HD void encode_nearest_at(const WeightView& w, int64_t e, float x) {
  switch (w.dtype) {
    case DType::F32:
      static_cast<float*>(w.data)[e - w.first] = x;
      return;
    case DType::F16:
      static_cast<uint16_t*>(w.data)[e - w.first] = f32_to_fp16(x);
      return;
    case DType::BF16:
      static_cast<uint16_t*>(w.data)[e - w.first] = f32_to_bf16(x);
      return;
    case DType::BF16T8: {
      const Split24 s = split24(f32_to_u24_nearest(x));
      static_cast<uint16_t*>(w.data)[e - w.first] = s.hi;
      w.tail[e - w.first] = s.tail;
      return;
    }
    case DType::NF4:
    case DType::I8:
      return;
  }
}

}  // namespace smezo
