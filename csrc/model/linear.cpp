// Operands and products of all branches; the order of sums is the kernels' business (I12).
#include "model/linear.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "base/error.h"
#include "model/catch_up.h"

namespace smezo {
namespace {

constexpr int64_t kStripBudgetBytes =
    256 * 1024;  // operands of both signs: half of a common second-level cache
constexpr int64_t kMaxStripRows = 64;

int64_t align_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

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
      plain.plain.push_back(b);
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
  }
  if (!plain.plain.empty()) out.push_back(plain);
  return out;
}

Weights::Weights(const VisitContext& context, Store& store)
    : context_(context),
      kernels_(*context.kernels),
      store_(store),
      trained_groups_(group_branches(context.branches)) {
  BranchGroup all;
  for (int b = 0; b < n_branches(); ++b) all.plain.push_back(b);
  plain_groups_.push_back(all);
}

bool Weights::trained(int64_t id) const {
  return context_.methods != nullptr && (*context_.methods)[static_cast<size_t>(id)].trained;
}

int64_t Weights::operand_row_bytes(Compute compute, int64_t k) const {
  return kernels_.operand_ld(compute, k) * dtype_bytes(kernels_.operand_dtype(compute));
}

int64_t Weights::strip_rows(int64_t k) const {
  const int64_t fits = kStripBudgetBytes / (2 * operand_row_bytes(context_.compute, k));
  return std::clamp<int64_t>(fits / 16 * 16, 16, kMaxStripRows);
}

int64_t Weights::strip_bytes(int64_t k) const {
  return 2 * align_up(strip_rows(k) * operand_row_bytes(context_.compute, k), kStripAlign);
}

int64_t Weights::embed_bytes(int64_t d) const {
  return 2 * align_up(kLanes * operand_row_bytes(Compute::f32, d), kStripAlign);
}

OperandJob Weights::job_for(int64_t id, const BranchGroup& g, OperandMode mode, Compute compute) const {
  OperandJob job;
  job.w = store_.weight(static_cast<uint32_t>(id));
  job.mode = mode;
  job.compute = compute;
  job.eps = g.eps;
  if (g.eps > 0) {
    job.dir = direction_of((*context_.methods)[static_cast<size_t>(id)], static_cast<uint32_t>(id),
                           context_.run_seed, context_.step, static_cast<uint32_t>(g.query));
  }
  return job;
}

void Weights::make(const OperandJob& job, const StripRows& rows, int64_t ld_bytes, char* plus,
                   char* minus) const {
  if (rows.list == nullptr) {
    kernels_.produce(job, rows.row0, rows.n, plus, minus);
    return;
  }
  for (int64_t i = 0; i < rows.n; ++i) {
    kernels_.produce(job, rows.list[i], 1, plus ? plus + i * ld_bytes : nullptr,
                     minus ? minus + i * ld_bytes : nullptr);
  }
}

void Weights::catch_up(int64_t id) {
  if (!trained(id) || !context_.pending) return;
  const uint32_t tensor = static_cast<uint32_t>(id);
  const std::vector<PendingRecord>& records = context_.pending(tensor);
  if (records.empty()) return;
  catch_up_tensor(store_.weight(tensor), (*context_.methods)[tensor], context_.run_seed, records, kernels_,
                  *context_.pool);
  context_.caught_up(tensor);
}

void Weights::load_vectors(const std::vector<int64_t>& ids) {
  vectors_.resize(static_cast<size_t>(store_.n_tensors()));
  for (const int64_t id : ids) {
    catch_up(id);
    const WeightView w = store_.weight(static_cast<uint32_t>(id));
    std::vector<std::vector<float>>& values = vectors_[static_cast<size_t>(id)];
    values.assign(trained(id) ? static_cast<size_t>(n_branches()) : 1,
                  std::vector<float>(static_cast<size_t>(w.n())));
    for (const BranchGroup& g : groups(id)) {
      if (g.eps == 0) {
        kernels_.decode(w, 0, w.n(), values[trained(id) ? static_cast<size_t>(g.plain[0]) : 0].data());
        for (size_t i = 1; trained(id) && i < g.plain.size(); ++i)
          values[static_cast<size_t>(g.plain[i])] = values[static_cast<size_t>(g.plain[0])];
        continue;
      }
      // Strips have padding columns, so not straight into `values`.
      const size_t n = static_cast<size_t>(kernels_.operand_ld(Compute::f32, w.cols));
      std::vector<float> plus(n + 16), minus(n + 16);
      const auto aligned = [](std::vector<float>& v) {
        return reinterpret_cast<float*>(
            align_up(static_cast<int64_t>(reinterpret_cast<intptr_t>(v.data())), kStripAlign));
      };
      kernels_.produce(job_for(id, g, OperandMode::nearest, Compute::f32), 0, 1, aligned(plus),
                       aligned(minus));
      if (g.plus >= 0) std::copy_n(aligned(plus), w.cols, values[static_cast<size_t>(g.plus)].data());
      if (g.minus >= 0) std::copy_n(aligned(minus), w.cols, values[static_cast<size_t>(g.minus)].data());
    }
  }
}

const float* Weights::vector(int64_t id, int branch) const {
  const auto& values = vectors_[static_cast<size_t>(id)];
  return values[values.size() == 1 ? 0 : static_cast<size_t>(branch)].data();
}

void Weights::embed(int64_t id, const int32_t* tokens, int64_t n, int64_t column,
                    const std::vector<float*>& out, int64_t ld, void* scratch) const {
  const WeightView w = store_.weight(static_cast<uint32_t>(id));
  const int64_t d = w.cols, row_floats = kernels_.operand_ld(Compute::f32, d);
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
      for (int64_t t = 0; t < n; ++t) kernels_.decode(w, tokens[t] * d, d, plus + t * row_floats);
      for (const int b : g.plain) scatter(plus, b);
      continue;
    }
    const StripRows rows{0, n, tokens};
    make(job_for(id, g, OperandMode::nearest, Compute::f32), rows,
         row_floats * static_cast<int64_t>(sizeof(float)), reinterpret_cast<char*>(plus),
         reinterpret_cast<char*>(minus));
    if (g.plus >= 0) scatter(plus, g.plus);
    if (g.minus >= 0) scatter(minus, g.minus);
  }
}

void Weights::multiply_strip(int64_t id, const StripRows& rows, const std::vector<void*>& packed,
                             int64_t n_panels, const std::vector<float*>& out, int64_t ld, Epilogue epilogue,
                             char* scratch) const {
  const int64_t k = store_.weight(static_cast<uint32_t>(id)).cols;
  const int64_t row_bytes = operand_row_bytes(context_.compute, k);
  char* const plus = scratch;
  char* const minus = scratch + align_up(strip_rows(k) * row_bytes, kStripAlign);
  const auto gemm = [&](int branch, const char* operand, float alpha, Epilogue e) {
    kernels_.gemm(context_.compute, operand, rows.n, k, packed[static_cast<size_t>(branch)], n_panels, alpha,
                  e, out[static_cast<size_t>(branch)], ld);
  };
  for (const BranchGroup& g : groups(id)) {
    const OperandJob job = job_for(id, g, context_.mode, context_.compute);
    if (g.eps == 0) {
      make(job, rows, row_bytes, plus, nullptr);
      for (const int b : g.plain) gemm(b, plus, 1.0f, epilogue);
    } else if (context_.mode == OperandMode::split) {
      make(job, rows, row_bytes, plus, minus);
      for (const int b : {g.plus, g.minus}) {
        if (b < 0) continue;
        gemm(b, plus, 1.0f, epilogue);
        gemm(b, minus, b == g.plus ? g.eps : -g.eps, Epilogue::add);
      }
    } else {
      make(job, rows, row_bytes, g.plus >= 0 ? plus : nullptr, g.minus >= 0 ? minus : nullptr);
      if (g.plus >= 0) gemm(g.plus, plus, 1.0f, epilogue);
      if (g.minus >= 0) gemm(g.minus, minus, 1.0f, epilogue);
    }
  }
}

void Weights::multiply(const std::vector<LinearPart>& parts, int64_t k, const std::vector<void*>& packed,
                       int64_t n_panels, int64_t ld, Epilogue epilogue, const std::vector<char*>& scratch) {
  struct Visited {
    WeightView w;
    std::vector<PendingRecord> records;  // a copy: asking for the next part's may move them
    int64_t strip0;
  };
  const int64_t strip = strip_rows(k);
  std::vector<Visited> visited;
  int64_t n_strips = 0;
  for (const LinearPart& p : parts) {
    const uint32_t id = static_cast<uint32_t>(p.weight);
    visited.push_back({store_.weight(id), {}, n_strips});
    if (trained(p.weight) && context_.pending) visited.back().records = context_.pending(id);
    n_strips += (visited.back().w.rows + strip - 1) / strip;
  }
  context_.pool->run(n_strips, [&](int64_t item, int thread) {
    size_t i = parts.size() - 1;
    while (visited[i].strip0 > item) --i;
    const LinearPart& p = parts[i];
    const Visited& v = visited[i];
    const int64_t row0 = (item - v.strip0) * strip, n = std::min(strip, v.w.rows - row0);
    if (!v.records.empty()) {
      catch_up_rows(v.w, (*context_.methods)[static_cast<size_t>(p.weight)], context_.run_seed, v.records,
                    kernels_, row0, n);
    }
    std::vector<float*> out(p.out);
    for (float*& o : out) o += row0 * ld;
    multiply_strip(p.weight, {row0, n, nullptr}, packed, n_panels, out, ld, epilogue,
                   scratch[static_cast<size_t>(thread)]);
    if (p.bias == kNoTensor) return;
    for (int b = 0; b < n_branches(); ++b) {
      const float* const bias = vector(p.bias, b) + row0;
      for (int64_t r = 0; r < n; ++r) {
        float* const row = out[static_cast<size_t>(b)] + r * ld;
        for (int64_t t = 0; t < n_panels * kLanes; ++t) row[t] += bias[r];
      }
    }
  });
  for (size_t i = 0; i < parts.size(); ++i) {
    if (!visited[i].records.empty()) context_.caught_up(static_cast<uint32_t>(parts[i].weight));
  }
}

}  // namespace smezo
