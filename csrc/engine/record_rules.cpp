#include "engine/record_rules.h"

#include <algorithm>

#include "direction/layer_subset.h"

namespace smezo {

// x^n by squaring: the C library's pow is not the same everywhere.
static double power(double x, int64_t n) {
  double out = 1;
  for (; n > 0; n /= 2, x *= x) {
    if (n % 2 == 1) out *= x;
  }
  return out;
}

std::vector<bool> RecordRules::resting(uint32_t step) const {
  if (method_.drop == 0) return {};
  return resting_layers(run_seed_, step, n_layers_, n_resting(method_, n_layers_));
}

// n_averaged: records whose estimates the moments hold.
Rule RecordRules::rule_of(const Record& r, int64_t n_averaged) const {
  const auto rounded = [](double x) { return static_cast<float>(x); };
  const double lr = static_cast<double>(r.lr);
  Rule out;
  out.kind = method_.rule;
  out.step = r.lr;
  out.beta1 = rounded(method_.beta1);
  out.add1 = method_.rule == RuleKind::momentum && !method_.damped ? 1.0f : rounded(1 - method_.beta1);
  out.beta2 = rounded(method_.beta2);
  out.add2 = rounded(1 - method_.beta2);
  out.delta = rounded(method_.adam_eps);
  if (method_.rule == RuleKind::adam && method_.corrected) {
    out.step = rounded(lr / (1 - power(method_.beta1, n_averaged)));
    out.scale2 = rounded(1 / (1 - power(method_.beta2, n_averaged)));
  }
  if (method_.rule == RuleKind::hizoo) {
    out.step = rounded(lr * static_cast<double>(r.scalars[0]));
    out.beta1 = rounded(1 - method_.smoothing);
    out.add1 = rounded(method_.smoothing * static_cast<double>(r.scalars[1]));
  }
  return out;
}

void RecordRules::pass(int64_t n, uint32_t step) {
  n_steps_ += n;
  if (n > 0) last_ = step;
}

PendingRecord RecordRules::next(const Record& r) {
  PendingRecord p;
  p.step = r.step;
  p.after = last_;
  p.decay = r.decay;
  p.resting = resting(r.step);
  ++n_steps_;
  last_ = r.step;
  const int n_queries = method_.queries;
  const size_t window = static_cast<size_t>(method_.window);
  for (int q = 0; q < n_queries; ++q) {
    const float g = r.scalars[static_cast<size_t>(q)];
    p.c.push_back(method_.rule == RuleKind::sgd     ? step_coefficient(r.lr, g, n_queries)
                  : method_.rule == RuleKind::hizoo ? 1.0f
                                                    : step_coefficient(1.0f, g, n_queries));
  }
  p.past.assign(past_.begin(), past_.end());
  p.rule = rule_of(r, window > 0 ? static_cast<int64_t>(p.past.size()) + 1 : n_steps_);
  if (window > 0) {
    past_.push_back({p.step, p.c});
    if (past_.size() >= window) past_.pop_front();
  }
  return p;
}

Besides::Besides(const std::vector<TensorMethod>& methods, const std::vector<ParameterSpec>& parameters,
                 FactorSource& factors, uint64_t run_seed)
    : methods_(methods),
      parameters_(parameters),
      factors_(factors),
      run_seed_(run_seed),
      all_(methods.size()),
      tracks_(methods.size()) {
  for (size_t id = 0; id < methods.size(); ++id) {
    const TensorMethod& m = methods[id];
    if (!m.trained || !m.low_rank || !m.only_read) continue;
    all_[id].block_size = block_size_of(m.low_rank, parameters[id].rows);
    all_[id].values.assign(static_cast<size_t>(all_[id].block_size), 0.0f);
  }
}

const Beside* Besides::of(uint32_t id) const { return all_[id].block_size > 0 ? &all_[id] : nullptr; }

// N -= sum over queries of c_q scale u_q.
void Besides::add_rows(uint32_t id, const PendingRecord& r, float* block) {
  const LowRank& d = methods_[id].low_rank;
  const ParameterSpec& p = parameters_[id];
  const std::shared_ptr<const Factors> f = factors_.of(d, id, p.rows, p.cols, epoch_of(d, r.step));
  std::vector<float> u(static_cast<size_t>(p.rows * d.rank));
  for (size_t q = 0; q < r.c.size(); ++q) {
    f->u_rows(0, p.rows, r.step, static_cast<uint32_t>(q), u.data());
    const float c = r.c[q] * f->scale();
    for (size_t i = 0; i < u.size(); ++i) block[i] -= c * u[i];
  }
}

void Besides::apply(const PendingRecord& r) {
  for (uint32_t id = 0; id < all_.size(); ++id) {
    Beside& b = all_[id];
    const TensorMethod& m = methods_[id];
    if (b.block_size == 0) continue;
    const int64_t epoch = epoch_of(m.low_rank, r.step);
    if (b.n_blocks() <= epoch) b.values.resize(static_cast<size_t>((epoch + 1) * b.block_size), 0.0f);
    if (r.skips(m)) continue;
    float* const c = b.block(epoch);
    const size_t n = static_cast<size_t>(b.block_size);
    if (m.low_rank.kind == LowRankKind::uv) {
      add_rows(id, r, c);
      continue;
    }
    if (r.rule.kind == RuleKind::sgd) {
      for (size_t q = 0; q < r.c.size(); ++q) {
        const std::vector<float> z = middle_of(m.low_rank, run_seed_, id, r.step, static_cast<uint32_t>(q));
        for (size_t i = 0; i < n; ++i) c[i] = __builtin_fmaf(-r.c[q], z[i], c[i]);
      }
      continue;
    }
    Track& track = tracks_[id];
    const std::vector<float> e = middle_estimate(m.low_rank, run_seed_, id, r.step, r.c);
    track.m.resize(n), track.v.resize(n);
    for (size_t i = 0; i < n; ++i) {
      advance_moments(r.rule, e[i], &track.m[i], &track.v[i]);
      c[i] = rule_step(r.rule, c[i], e[i], track.m[i], track.v[i]);
    }
  }
}

}  // namespace smezo
