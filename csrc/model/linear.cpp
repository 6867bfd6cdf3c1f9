// Operands and products of all branches; the order of sums is the kernels' business (I12).
#include "model/linear.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <string>

#include "base/error.h"
#include "model/catch_up.h"

namespace smezo {
namespace {

int64_t align_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

struct Strip {
  size_t part;
  int64_t row0, n;
};

// Rows of all parts in strips of at most `most`, finer towards the end so that threads finish together.
std::vector<Strip> cut_strips(const std::vector<int64_t>& rows, int64_t most, int n_threads) {
  int64_t left = std::accumulate(rows.begin(), rows.end(), int64_t{0});
  std::vector<Strip> strips;
  for (size_t part = 0; part < rows.size(); ++part) {
    for (int64_t row0 = 0; row0 < rows[part];) {
      const int64_t share = n_threads == 1 ? most : left / (2 * n_threads) / kStripStep * kStripStep;
      const int64_t n = std::min(std::clamp(share, kStripStep, most), rows[part] - row0);
      strips.push_back({part, row0, n});
      row0 += n;
      left -= n;
    }
  }
  return strips;
}

}  // namespace

std::vector<BranchGroup> group_branches(const std::vector<Branch>& branches) {
  check<ArgumentError>(!branches.empty(), "model", "no branch to run; expected at least one");
  std::vector<BranchGroup> out;
  BranchGroup plain;
  for (int b = 0; b < static_cast<int>(branches.size()); ++b) {
    const Branch& branch = branches[static_cast<size_t>(b)];
    check<ArgumentError>(
        std::isfinite(branch.eps) && branch.eps >= 0, "model",
        "eps of a branch is " + std::to_string(branch.eps) + ", expected a finite value >= 0");
    check<ArgumentError>(branch.sign == 1 || branch.sign == -1, "model",
                         "sign of a branch is " + std::to_string(branch.sign) + ", expected +1 or -1");
    check<ArgumentError>(branch.query >= 0 && branch.query <= static_cast<int>(kMaxQuery), "model",
                         "query of a branch is " + std::to_string(branch.query) + ", expected 0.." +
                             std::to_string(kMaxQuery));
    if (branch.eps == 0) {
      plain.branches.push_back(b);
      continue;
    }
    int BranchGroup::* const side = branch.sign > 0 ? &BranchGroup::plus : &BranchGroup::minus;
    const bool joins = !out.empty() && out.back().query == branch.query && out.back().eps == branch.eps &&
                       out.back().*side < 0;
    if (!joins) {
      out.push_back({});
      out.back().query = branch.query;
      out.back().eps = branch.eps;
    }
    out.back().*side = b;
    out.back().branches.push_back(b);
  }
  if (!plain.branches.empty()) out.push_back(plain);
  return out;
}

Weights::Weights(const VisitContext& context, Store& store)
    : context_(context),
      kernels_(*context.kernels),
      store_(store),
      sizes_(*context.kernels, context.compute),
      trained_groups_(group_branches(context.branches)) {
  BranchGroup all;
  for (int b = 0; b < n_branches(); ++b) all.branches.push_back(b);
  plain_groups_.push_back(all);
}

bool Weights::trained(int64_t id) const {
  return context_.methods != nullptr && (*context_.methods)[static_cast<size_t>(id)].trained;
}

bool Weights::perturbed(int64_t id) const {
  if (!trained(id)) return false;
  const TensorMethod& m = (*context_.methods)[static_cast<size_t>(id)];
  return !m.low_rank && !context_.rests(m);
}

void Weights::prepare_side(size_t slot, int64_t id, int64_t k, const std::vector<void*>& packed,
                           int64_t n_panels) {
  sides_[slot].clear();
  if (!trained(id) || !(*context_.methods)[static_cast<size_t>(id)].low_rank) return;
  const uint32_t tensor = static_cast<uint32_t>(id);
  sides_[slot].prepare(context_, tensor, store_.request(tensor).rows, k, packed, n_panels);
}

const SideProduct* Weights::side_of(int64_t id) const {
  for (const SideProduct& s : sides_) {
    if (s.is_of(id)) return &s;
  }
  return nullptr;
}

OperandJob Weights::job_for(const WeightView& w, int64_t row0, const BranchGroup& g, OperandMode mode,
                            Compute compute) const {
  OperandJob job;
  job.w = w;
  job.mode = mode;
  job.compute = compute;
  job.eps = g.eps;
  if (g.eps > 0) {
    const TensorMethod& method = (*context_.methods)[w.tensor_id];
    job.dir =
        direction_of(method, w.tensor_id, context_.run_seed, context_.step, static_cast<uint32_t>(g.query));
    if (method.rule == RuleKind::hizoo) {
      const float* const h = store_.moments_at(w.tensor_id, row0, 0);
      job.curvature = store_.overlay(w.tensor_id) ? h : h - (row0 * w.cols - w.first);
    }
  }
  return job;
}

void Weights::make(OperandJob job, const StripRows& rows, int64_t ld_bytes, char* plus, char* minus) const {
  if (rows.list == nullptr) {
    kernels_.produce(job, rows.row0, rows.n, plus, minus);
    return;
  }
  for (int64_t i = 0; i < rows.n; ++i) {
    job.w = rows.views->at(rows.list[i]);
    kernels_.produce(job, rows.list[i], 1, plus ? plus + i * ld_bytes : nullptr,
                     minus ? minus + i * ld_bytes : nullptr);
  }
}

void Weights::catch_up(int64_t id) {
  if (!trained(id) || !context_.catch_up || store_.streams_state(static_cast<uint32_t>(id))) return;
  const uint32_t tensor = static_cast<uint32_t>(id);
  context_.catch_up(tensor).apply_all(store_, *context_.pool);
  context_.caught_up(tensor);
}

void Weights::load_vectors(const std::vector<int64_t>& ids) {
  vectors_.clear();
  for (const int64_t id : ids) {
    catch_up(id);
    const WeightView w = store_.weight(static_cast<uint32_t>(id));
    std::vector<std::vector<float>>& values = vectors_[id];
    const bool apart = perturbed(id);
    values.assign(apart ? static_cast<size_t>(n_branches()) : 1,
                  std::vector<float>(static_cast<size_t>(w.n())));
    for (const BranchGroup& g : groups(id)) {
      if (g.eps == 0) {
        kernels_.decode(w, 0, w.n(), values[apart ? static_cast<size_t>(g.branches[0]) : 0].data());
        for (size_t i = 1; apart && i < g.branches.size(); ++i)
          values[static_cast<size_t>(g.branches[i])] = values[static_cast<size_t>(g.branches[0])];
        continue;
      }
      // Strips have padding columns, so not straight into `values`.
      const size_t n = static_cast<size_t>(kernels_.operand_ld(Compute::f32, w.cols));
      std::vector<float> plus(n + 16), minus(n + 16);
      const auto aligned = [](std::vector<float>& v) {
        return reinterpret_cast<float*>(
            align_up(static_cast<int64_t>(reinterpret_cast<intptr_t>(v.data())), kStripAlign));
      };
      kernels_.produce(job_for(w, 0, g, OperandMode::nearest, Compute::f32), 0, 1, aligned(plus),
                       aligned(minus));
      if (g.plus >= 0) std::copy_n(aligned(plus), w.cols, values[static_cast<size_t>(g.plus)].data());
      if (g.minus >= 0) std::copy_n(aligned(minus), w.cols, values[static_cast<size_t>(g.minus)].data());
    }
  }
}

const float* Weights::vector(int64_t id, int branch) const {
  const std::vector<std::vector<float>>& values = vectors_.at(id);
  return values[values.size() == 1 ? 0 : static_cast<size_t>(branch)].data();
}

RowViews Weights::rows(int64_t id, std::vector<int32_t> list) const {
  std::sort(list.begin(), list.end());
  list.erase(std::unique(list.begin(), list.end()), list.end());
  const uint32_t tensor = static_cast<uint32_t>(id);
  if (!store_.streams_state(tensor)) return store_.rows(tensor, list);
  RowViews out = store_.state_rows(tensor, list, kernels_);
  if (!context_.catch_up) return out;
  const CatchUp records = context_.catch_up(tensor);
  context_.pool->run(static_cast<int64_t>(list.size()), [&](int64_t i, int) {
    const int32_t row = list[static_cast<size_t>(i)];
    records.apply(out.at(row), nullptr, row, 1);
  });
  return out;
}

void Weights::embed(int64_t id, const RowViews& views, const int32_t* tokens, int64_t n, int64_t column,
                    const std::vector<float*>& out, int64_t ld, void* scratch) const {
  const int64_t d = views.at(tokens[0]).cols, row_floats = kernels_.operand_ld(Compute::f32, d);
  float* const plus = static_cast<float*>(scratch);
  float* const minus = plus + kLanes * row_floats;
  const auto scatter = [&](const float* rows, int branch) {
    float* const x = out[static_cast<size_t>(branch)] + column;
    for (int64_t i = 0; i < d; ++i) {
      for (int64_t t = 0; t < n; ++t) x[i * ld + t] = rows[t * row_floats + i];
    }
  };
  for (const BranchGroup& g : groups(id)) {
    if (g.eps == 0) {
      for (int64_t t = 0; t < n; ++t)
        kernels_.decode(views.at(tokens[t]), tokens[t] * d, d, plus + t * row_floats);
      for (const int b : g.branches) scatter(plus, b);
      continue;
    }
    const StripRows rows{nullptr, &views, 0, n, tokens};
    make(job_for(rows.any(), rows.first(), g, OperandMode::nearest, Compute::f32), rows,
         row_floats * static_cast<int64_t>(sizeof(float)), reinterpret_cast<char*>(plus),
         reinterpret_cast<char*>(minus));
    if (g.plus >= 0) scatter(plus, g.plus);
    if (g.minus >= 0) scatter(minus, g.minus);
  }
}

Weights::Operands Weights::operands_at(char* scratch, int64_t k) const {
  return {scratch, scratch + strip_bytes(k) / 2};
}

// All branches of a base with an overlay share one operand but for the elements of the set.
void Weights::make_over_base(const BranchGroup& g, const StripRows& rows, const Operands& to) const {
  const int64_t ld_bytes = operand_row_bytes(context_.compute, rows.w->cols);
  const bool split = g.eps > 0 && context_.mode == OperandMode::split;
  char* const minus = g.eps > 0 && (split || g.minus >= 0) ? to.minus : nullptr;
  make(job_for(*rows.w, rows.row0, BranchGroup{}, context_.mode, context_.compute), rows, ld_bytes, to.plus,
       nullptr);
  if (split) {
    std::memset(minus, 0, static_cast<size_t>(rows.n * ld_bytes));
  } else if (minus) {
    std::memcpy(minus, to.plus, static_cast<size_t>(rows.n * ld_bytes));
  }
  patch_operands(*rows.overlay, job_for(*rows.w, rows.row0, g, context_.mode, context_.compute), rows.row0,
                 rows.n, kernels_.operand_dtype(context_.compute),
                 kernels_.operand_ld(context_.compute, rows.w->cols), to.plus, minus);
}

void Weights::make_group(const BranchGroup& g, const StripRows& rows, const Operands& to) const {
  if (rows.overlay) return make_over_base(g, rows, to);
  const OperandJob job = job_for(rows.any(), rows.first(), g, context_.mode, context_.compute);
  const bool split = g.eps > 0 && context_.mode == OperandMode::split;
  make(job, rows, operand_row_bytes(context_.compute, job.w.cols),
       g.eps == 0 || split || g.plus >= 0 ? to.plus : nullptr,
       g.eps > 0 && (split || g.minus >= 0) ? to.minus : nullptr);
}

void Weights::product(const BranchGroup& g, int branch, const Operands& operands, int64_t n_rows, int64_t k,
                      const void* packed, const Terms& more, int64_t n_panels, Epilogue epilogue, float* out,
                      int64_t ld) const {
  const auto gemm = [&](const char* operand, const Terms& also, float alpha, Epilogue e) {
    kernels_.gemm(context_.compute, {operand, k, packed}, also, n_rows, n_panels, alpha, e, out, ld);
  };
  if (g.eps > 0 && context_.mode == OperandMode::split) {
    gemm(operands.plus, more, 1.0f, epilogue);
    gemm(operands.minus, {}, branch == g.plus ? g.eps : -g.eps, Epilogue::add);
  } else {
    gemm(g.eps == 0 || branch == g.plus ? operands.plus : operands.minus, more, 1.0f, epilogue);
  }
}

void Weights::add_bias(int64_t bias, int branch, int64_t row0, int64_t n, int64_t n_panels, float* out,
                       int64_t ld) const {
  if (bias == kNoTensor) return;
  const float* const values = vector(bias, branch) + row0;
  for (int64_t r = 0; r < n; ++r) {
    for (int64_t t = 0; t < n_panels * kLanes; ++t) out[r * ld + t] += values[r];
  }
}

void Weights::multiply_strip(int64_t id, const StripRows& rows, const std::vector<void*>& packed,
                             int64_t n_panels, const std::vector<float*>& out, int64_t ld, Epilogue epilogue,
                             char* scratch) const {
  const int64_t k = rows.any().cols;
  const Operands operands = operands_at(scratch, k);
  const SideProduct* const side = side_of(id);
  FactorStrip factors{operands.minus};  // the plain branches need no second operand
  for (const BranchGroup& g : groups(id)) {
    make_group(g, rows, operands);
    for (const int b : g.branches) {
      const size_t i = static_cast<size_t>(b);
      const Terms more = side ? side->terms(factors, rows.row0, rows.n, b, 0) : Terms{};
      product(g, b, operands, rows.n, k, packed[i], more, n_panels, epilogue, out[i], ld);
    }
  }
}

Weights::Visit Weights::begin_visit(const Unit& unit) {
  // A read may fail half way through a tensor, and its watermark stands for all of its rows: what lies in
  // memory whole is caught up whole, or records would be applied to its first rows twice (I1).
  if (unit.row0 == 0 && unit.n_rows < store_.request(unit.tensor_id).rows) catch_up(unit.tensor_id);
  Visit v{unit.tensor_id, unit, store_.acquire(unit), store_.overlay(unit.tensor_id), {}};
  if (trained(v.id) && context_.catch_up) v.records = context_.catch_up(unit.tensor_id);
  return v;
}

void Weights::catch_up_strip(const Visit& v, int64_t row0, int64_t n) const {
  store_.prepare_rows(v.unit, row0, n, kernels_);
  v.records.apply(v.w, v.overlay, row0, n);
  store_.finish_rows(v.unit, row0, n, kernels_);
}

void Weights::end_visit(const Visit& v) const {
  const bool last = v.unit.row0 + v.unit.n_rows == v.w.rows;
  if (last && trained(v.id) && context_.catch_up && !store_.streams_state(v.unit.tensor_id))
    context_.caught_up(v.unit.tensor_id);
  store_.release(v.unit);
}

void Weights::for_units(int64_t id, const std::function<void(const Unit&, const WeightView&)>& body) {
  for (const Unit& unit : units_of({id}, cut_of(store_))) {
    const Visit v = begin_visit(unit);
    if (store_.streams_state(unit.tensor_id))
      context_.pool->run(unit.n_rows, [&](int64_t i, int) { catch_up_strip(v, unit.row0 + i, 1); });
    body(unit, v.w);
    end_visit(v);
  }
}

void Weights::multiply(const std::vector<LinearPart>& parts, int64_t k, const std::vector<void*>& packed,
                       int64_t n_panels, int64_t ld, Epilogue epilogue, const std::vector<char*>& scratch) {
  std::vector<std::pair<const LinearPart*, Unit>> todo;
  for (size_t slot = 0; slot < parts.size(); ++slot) {
    const LinearPart& p = parts[slot];
    prepare_side(slot, p.weight, k, packed, n_panels);
    for (const Unit& unit : units_of({p.weight}, cut_of(store_))) todo.emplace_back(&p, unit);
  }
  for (size_t next = 0; next < todo.size();) {
    // One parallel region over as many units as may be held.
    const size_t first = next;
    std::vector<Visit> visits;
    std::vector<int64_t> rows;
    for (int64_t held = 0; next < todo.size(); ++next) {
      held += store_.unit_bytes(todo[next].second);
      if (next > first && held > store_.hold_bytes()) break;
      visits.push_back(begin_visit(todo[next].second));
      rows.push_back(todo[next].second.n_rows);
    }
    const std::vector<Strip> strips = cut_strips(rows, strip_rows(k), context_.pool->size());
    context_.pool->run(static_cast<int64_t>(strips.size()), [&](int64_t item, int thread) {
      const Strip& s = strips[static_cast<size_t>(item)];
      const LinearPart& p = *todo[first + s.part].first;
      const Visit& v = visits[s.part];
      const int64_t row0 = v.unit.row0 + s.row0;
      catch_up_strip(v, row0, s.n);
      std::vector<float*> out(p.out);
      for (float*& o : out) o += row0 * ld;
      multiply_strip(p.weight, {&v.w, nullptr, row0, s.n, nullptr, v.overlay}, packed, n_panels, out, ld,
                     epilogue, scratch[static_cast<size_t>(thread)]);
      for (int b = 0; b < n_branches(); ++b)
        add_bias(p.bias, b, row0, s.n, n_panels, out[static_cast<size_t>(b)], ld);
    });
    for (const Visit& v : visits) end_visit(v);
  }
}

void Weights::multiply_gated(const GatedPart& part, int64_t k, const std::vector<void*>& packed,
                             int64_t n_panels, const std::vector<void*>& h,
                             const std::vector<char*>& scratch) {
  prepare_side(0, part.gate, k, packed, n_panels);
  prepare_side(1, part.up, k, packed, n_panels);
  const std::vector<Unit> units = units_of_gated(part.gate, part.up, cut_of(store_));
  for (size_t next = 0; next < units.size();) {
    std::vector<Visit> visits;
    const size_t first = next;
    for (int64_t held = 0; next < units.size(); next += 2) {
      held += store_.unit_bytes(units[next]) + store_.unit_bytes(units[next + 1]);
      if (next > first && held > store_.hold_bytes()) break;
      visits.push_back(begin_visit(units[next]));
      visits.push_back(begin_visit(units[next + 1]));
    }
    multiply_gated_units(part, visits, k, packed, n_panels, h, scratch);
    for (const Visit& v : visits) end_visit(v);
  }
}

void Weights::multiply_gated_units(const GatedPart& part, const std::vector<Visit>& visits, int64_t k,
                                   const std::vector<void*>& packed, int64_t n_panels,
                                   const std::vector<void*>& h, const std::vector<char*>& scratch) const {
  const int64_t n_features = visits[0].w.rows, n_blocks = (n_panels + kGatedPanels - 1) / kGatedPanels;
  std::vector<int64_t> rows;
  for (size_t i = 0; i < visits.size(); i += 2) rows.push_back(visits[i].unit.n_rows);
  const std::vector<Strip> strips = cut_strips(rows, strip_rows(k), context_.pool->size());
  context_.pool->run(static_cast<int64_t>(strips.size()), [&](int64_t item, int thread) {
    Strip s = strips[static_cast<size_t>(item)];
    const Visit &gate = visits[2 * s.part], &up = visits[2 * s.part + 1];
    s.row0 += gate.unit.row0;
    catch_up_strip(gate, s.row0, s.n);
    catch_up_strip(up, s.row0, s.n);
    char* const mine = scratch[static_cast<size_t>(thread)];
    const Operands gate_operands = operands_at(mine, k), up_operands = operands_at(mine + strip_bytes(k), k);
    float* const gate_sums = reinterpret_cast<float*>(mine + 2 * strip_bytes(k));
    float* const up_sums = gate_sums + strip_rows(k) * kGatedLd;
    const SideProduct *const gate_side = side_of(part.gate), *const up_side = side_of(part.up);
    FactorStrip gate_factors{gate_operands.minus}, up_factors{up_operands.minus};
    for (const BranchGroup& g : groups(perturbed(part.gate) ? part.gate : part.up)) {
      const BranchGroup &gate_group = own_group(part.gate, g), &up_group = own_group(part.up, g);
      make_group(gate_group, {&gate.w, nullptr, s.row0, s.n, nullptr, gate.overlay}, gate_operands);
      make_group(up_group, {&up.w, nullptr, s.row0, s.n, nullptr, up.overlay}, up_operands);
      for (int64_t block = 0; block < n_blocks; ++block) {
        const int64_t p0 = block * n_panels / n_blocks, np = (block + 1) * n_panels / n_blocks - p0;
        for (const int b : g.branches) {
          const size_t i = static_cast<size_t>(b);
          const char* const x =
              static_cast<const char*>(packed[i]) + kernels_.packed_bytes(context_.compute, k, p0);
          const Terms more_gate = gate_side ? gate_side->terms(gate_factors, s.row0, s.n, b, p0) : Terms{};
          product(gate_group, b, gate_operands, s.n, k, x, more_gate, np, Epilogue::store, gate_sums,
                  kGatedLd);
          add_bias(part.gate_bias, b, s.row0, s.n, np, gate_sums, kGatedLd);
          const Terms more_up = up_side ? up_side->terms(up_factors, s.row0, s.n, b, p0) : Terms{};
          product(up_group, b, up_operands, s.n, k, x, more_up, np, Epilogue::store, up_sums, kGatedLd);
          add_bias(part.up_bias, b, s.row0, s.n, np, up_sums, kGatedLd);
          kernels_.silu_mul_pack(context_.compute, gate_sums, up_sums, kGatedLd, n_features, s.row0, s.n, p0,
                                 np, h[i]);
        }
      }
    }
  });
}

}  // namespace smezo
