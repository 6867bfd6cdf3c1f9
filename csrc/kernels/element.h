// What the producer and the update do to one element: the definition that every instruction set must match
// bit for bit. (Only a rounding to bf16 by hardware that flushes subnormals may differ, and only for
// operands, never for stored weights.)
#pragma once
#include <cstdint>

#include "base/host_device.h"
#include "direction/direction.h"
#include "format/codec.h"
#include "kernels/kernels.h"
#include "update/rule.h"
#include "update/sgd.h"

namespace smezo {

// m z of an element whose stored value is w; +0 where the mask leaves it out.
SMEZO_HD float masked_noise_at(const TensorDirection& d, int64_t e, float w) {
  return mask_at(d, static_cast<uint64_t>(e), w) ? z_at(d, static_cast<uint64_t>(e)) : 0.0f;
}

// Q(w) of the plain branch and of split mode. A stored bf16 plane is taken as it is: ties of BF16T8 went away
// from zero, so rounding the 24-bit value once more would not give the same.
SMEZO_HD float plain_operand_at(const WeightView& w, int64_t e, Compute compute) {
  if (compute == Compute::bf16 && (w.dtype == DType::BF16T8 || w.dtype == DType::BF16))
    return bf16_to_f32(static_cast<const uint16_t*>(w.data)[e - w.first]);
  const float value = decode_at(w, e);
  return compute == Compute::bf16 ? round_bf16(value) : value;
}

struct Operands {
  float plus, minus;  // bf16 values held in fp32 when compute is bf16
};

// m z as split mode multiplies by it.
SMEZO_HD float noise_operand(Compute compute, float mz) {
  return compute == Compute::bf16 ? round_bf16(mz) : mz;
}

// Both branches of nearest and dither mode; `dither` (16 bits) is looked at in dither mode only.
SMEZO_HD Operands perturbed(const OperandJob& j, float w, float mz, uint32_t dither) {
  const float plus = __builtin_fmaf(j.eps, mz, w), minus = __builtin_fmaf(-j.eps, mz, w);
  if (j.compute == Compute::f32) return {plus, minus};
  if (j.mode == OperandMode::nearest) return {round_bf16(plus), round_bf16(minus)};
  return {bf16_to_f32(f32_to_bf16_stochastic(plus, dither)),
          bf16_to_f32(f32_to_bf16_stochastic(minus, dither))};
}

SMEZO_HD bool takes_dither(const OperandJob& j) {
  return j.mode == OperandMode::dither && j.compute == Compute::bf16;
}

SMEZO_HD Stream dither_stream(const OperandJob& j) {
  Stream s = j.dir.stream;
  s.purpose = Purpose::dither;
  return s;
}

// Both operands of element e; minus is 0 and means nothing when eps = 0.
SMEZO_HD Operands operands_at(const OperandJob& j, int64_t e) {
  if (j.eps == 0) return {plain_operand_at(j.w, e, j.compute), 0};
  const float w = decode_at(j.w, e);
  float mz = masked_noise_at(j.dir, e, w);
  if (j.curvature) mz /= __builtin_sqrtf(j.curvature[e - j.w.first]);
  if (j.mode == OperandMode::split)
    return {plain_operand_at(j.w, e, j.compute), noise_operand(j.compute, mz)};
  return perturbed(j, w, mz, takes_dither(j) ? bits_at(dither_stream(j), static_cast<uint64_t>(e), 16) : 0);
}

// Rules that average: the weight after the record; moments of the element are updated.
SMEZO_HD float averaged_step(const UpdateJob& j, int64_t e, float w) {
  TensorDirection d = j.dir;
  const auto estimate = [&](uint32_t step, const float* c) {
    float x = 0;
    d.stream.step = step;
    for (int q = 0; q < j.n_queries; ++q) {
      d.stream.query = static_cast<uint32_t>(q);
      x = __builtin_fmaf(c[q], z_at(d, static_cast<uint64_t>(e)), x);
    }
    return x;
  };
  const int64_t at = e - j.w.first;
  float m = j.moments[0] ? j.moments[0][at] : 0, v = j.moments[1] ? j.moments[1][at] : 0;
  for (int i = 0; i < j.n_past; ++i) advance_moments(j.rule, estimate(j.past[i].step, j.past[i].c), &m, &v);
  const float x = estimate(j.dir.stream.step, j.c);
  advance_moments(j.rule, x, &m, &v);
  if (j.moments[0]) j.moments[0][at] = m;
  if (j.moments[1]) j.moments[1][at] = v;
  return rule_step(j.rule, w, x, m, v);
}

// Applies one record to element e, of a call whose first row is row0, in place.
SMEZO_HD void update_at(const UpdateJob& j, int64_t e, int64_t row0) {
  const float before = decode_at(j.w, e);
  if (!mask_at(j.dir, static_cast<uint64_t>(e), before)) return;
  float w = sgd_decay(before, j.decay);
  if (j.given) {
    const int64_t at = (e / j.w.cols - row0) * j.ld_given + e % j.w.cols;
    w = sgd_step(w, j.given[at], j.c[0]);
  } else if (j.rule.kind != RuleKind::sgd) {
    w = averaged_step(j, e, w);
  } else {
    TensorDirection d = j.dir;
    for (int q = 0; q < j.n_queries; ++q) {
      d.stream.query = static_cast<uint32_t>(q);
      w = sgd_step(w, z_at(d, static_cast<uint64_t>(e)), j.c[q]);
    }
  }
  Stream s = j.dir.stream;
  s.purpose = Purpose::rounding;
  s.query = 0;
  const uint32_t bits = rounding_bits(j.w.dtype);
  encode_at(j.w, e, w, bits == 0 ? 0 : bits_at(s, static_cast<uint64_t>(e), bits));
}

}  // namespace smezo
