// Update rules: what a committed record does to one element. Every formula is written once, in the operations
// of base/lanes.h, and runs on a float and on a vector alike. Order and fma are part of the definition:
// another order gives other bits.
//
// A record becomes a Rule: its numbers, made in double and rounded once to fp32, so that whoever applies the
// record, whenever, uses the same bits (I3). With e the mean over queries of g_q z_q:
//
//   sgd        w <- w - c_q z_q for each query in turn, c_q = lr g_q / Q (update/sgd.h)
//   momentum   m <- beta1 m + add1 e;  w <- w - step m
//   adam       m <- beta1 m + add1 e;  v <- beta2 v + add2 e^2;  w <- w - step m / (sqrt(scale2 v) + delta)
//   sign       w <- w - step sign(e); 0 where e is 0
//   hizoo      h <- keep h + add1 h z^2;  w <- w - c z / sqrt(h)
#pragma once
#include <cmath>
#include <cstdint>

#include "base/host_device.h"
#include "base/lanes.h"

namespace smezo {

enum class RuleKind : uint8_t { sgd, momentum, adam, sign, hizoo };

struct Rule {
  RuleKind kind = RuleKind::sgd;
  float step = 0;
  float beta1 = 0, add1 = 0;  // hizoo: 1 - s, s |l+ + l- - 2 l0| / (2 eps^2)
  float beta2 = 0, add2 = 0, scale2 = 1, delta = 0;
};

// Numbers that a rule keeps for each element: m, then v; or h.
constexpr int n_moments(RuleKind kind) {
  return kind == RuleKind::adam ? 2 : kind == RuleKind::momentum || kind == RuleKind::hizoo ? 1 : 0;
}
// What they are before the first record.
constexpr float first_moment(RuleKind kind) { return kind == RuleKind::hizoo ? 1.0f : 0.0f; }

// c_q = lr g_q / n_queries.
SMEZO_HD float step_coefficient(float lr, float g, int n_queries) {
  return static_cast<float>(static_cast<double>(lr) * static_cast<double>(g) / n_queries);
}
// lr lambda.
SMEZO_HD float decay_coefficient(float lr, double weight_decay) {
  return static_cast<float>(static_cast<double>(lr) * weight_decay);
}

template <class F>
SMEZO_HD F rule_const(float x) {
  return lane_const(x, F{});
}

template <class F>
SMEZO_HD F average(float beta, float add, F m, F x) {
  return lane_fma(rule_const<F>(beta), m, rule_const<F>(add) * x);
}

// The moments after estimate e. The ones a rule does not have are not touched.
template <class F>
SMEZO_HD void advance_moments(const Rule& r, F e, F* m, F* v) {
  if (r.kind == RuleKind::hizoo) {
    *m = lane_fma(rule_const<F>(r.beta1), *m, rule_const<F>(r.add1) * (*m * (e * e)));
    return;
  }
  if (r.kind == RuleKind::sign || r.kind == RuleKind::sgd) return;
  *m = average(r.beta1, r.add1, *m, e);
  if (r.kind == RuleKind::adam) *v = average(r.beta2, r.add2, *v, e * e);
}

// The weight after a step, with the moments that the estimate has been averaged into.
template <class F>
SMEZO_HD F rule_step(const Rule& r, F w, F e, F m, F v) {
  const F minus_step = rule_const<F>(-r.step);
  switch (r.kind) {
    case RuleKind::momentum:
      return lane_fma(minus_step, m, w);
    case RuleKind::adam:
      return lane_fma(minus_step, m / (lane_sqrt(rule_const<F>(r.scale2) * v) + rule_const<F>(r.delta)), w);
    case RuleKind::sign:
      return lane_fma(minus_step, lane_sign(e), w);
    case RuleKind::hizoo:
      return lane_fma(minus_step, e / lane_sqrt(m), w);
    case RuleKind::sgd:
      break;
  }
  return lane_fma(minus_step, e, w);
}

// TeZO-Adam's change of an element, of the two products that make it. Rounded one after the other.
template <class F>
SMEZO_HD F over_root(const Rule& r, F m, F v) {
  return rule_const<F>(r.step) * (m / lane_sqrt(rule_const<F>(r.scale2) * v + rule_const<F>(r.delta)));
}

}  // namespace smezo
