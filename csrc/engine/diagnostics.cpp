// How much of a perturbation survives operand rounding.
#include <algorithm>
#include <cmath>

#include "engine/engine_impl.h"
#include "format/half.h"
#include "model/catch_up.h"

namespace smezo {
namespace {

// One strip of operands as fp32.
struct Strip {
  std::vector<uint8_t> raw;
  DType dtype;
  int64_t ld;
  float at(int64_t i) const {
    return dtype == DType::F32 ? reinterpret_cast<const float*>(raw.data())[i]
                               : bf16_to_f32(reinterpret_cast<const uint16_t*>(raw.data())[i]);
  }
};

Strip strip_for(const Kernels& kernels, Compute compute, int64_t rows, int64_t cols) {
  Strip s;
  s.dtype = kernels.operand_dtype(compute);
  s.ld = kernels.operand_ld(compute, cols);
  s.raw.resize(static_cast<size_t>(rows * s.ld * plane_element_bytes(s.dtype)));
  return s;
}

}  // namespace

double Engine::surviving_perturbation(float eps, uint32_t noise_step) {
  Impl& m = *impl_;
  flush();
  // The factors are bf16 numbers, which products take as they are.
  if (m.header.method.low_rank != LowRankKind::none) return 1.0;
  constexpr int64_t kRows = 8,
                    kEvery = 16;  // 8 rows of every 128: millions of elements are plenty for two digits
  double dot = 0, made = 0, wanted = 0;
  const auto add = [&](double want, double got) {
    dot += want * got;
    made += got * got;
    wanted += want * want;
  };
  // The operands as they are made, and m z as it was asked for.
  struct Jobs {
    OperandJob made, exact;
  };
  const auto jobs_of = [&](uint32_t id) {
    OperandJob job;
    job.w = m.store->shape(id);
    job.dir = direction_of(m.selection.tensors[id], id, m.header.seed, noise_step, 0);
    job.mode = m.header.operand;
    job.compute = m.header.compute;
    job.eps = eps;
    OperandJob exact = job;
    exact.mode = OperandMode::split;
    exact.compute = Compute::f32;
    return Jobs{job, exact};
  };
  for (uint32_t id = 0; id < m.parameters.size(); ++id) {
    const TensorMethod& method = m.selection.tensors[id];
    if (!method.trained || m.parameters[id].rows == 1 || m.store->overlay(id)) continue;
    Jobs jobs = jobs_of(id);
    OperandJob &job = jobs.made, &exact = jobs.exact;
    const int64_t cols = m.parameters[id].cols, rows = std::min(kRows, m.parameters[id].rows);
    Strip plus = strip_for(m.kernels, job.compute, rows, cols), minus = plus;
    Strip weight = strip_for(m.kernels, Compute::f32, rows, cols), z = weight;
    m.pending->for_state(id, [&](const WeightView& w, int64_t first, int64_t n) {
      job.w = exact.w = w;
      if (method.rule == RuleKind::hizoo)
        job.curvature = exact.curvature = m.store->moments_at(id, first, 0) - (first * cols - w.first);
      const int64_t every = rows * kEvery;
      for (int64_t row0 = (first + every - 1) / every * every; row0 + rows <= first + n; row0 += every) {
        m.kernels.produce(job, row0, rows, plus.raw.data(), minus.raw.data());
        m.kernels.produce(exact, row0, rows, weight.raw.data(), z.raw.data());
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t c = 0; c < cols; ++c) {
            add(z.at(r * z.ld + c),
                job.mode == OperandMode::split
                    ? minus.at(r * minus.ld + c)
                    : (plus.at(r * plus.ld + c) - minus.at(r * minus.ld + c)) / (2.0 * eps));
          }
        }
      }
    });
  }
  for (uint32_t id = 0; id < m.parameters.size(); ++id) {
    const IndexOverlay* const o = m.store->overlay(id);
    if (o == nullptr) continue;
    Jobs jobs = jobs_of(id);
    OperandJob &job = jobs.made, &exact = jobs.exact;
    if (m.selection.tensors[id].rule == RuleKind::hizoo)
      job.curvature = exact.curvature = m.store->moments_at(id, 0, 0);
    std::vector<float> row(static_cast<size_t>(job.w.cols)), plus(row), minus(row), z(row);
    for (int64_t r = 0; r < job.w.rows; ++r) {
      const size_t at = static_cast<size_t>(r);
      patch_operands(*o, job, r, 1, DType::F32, job.w.cols, plus.data(), minus.data());
      patch_operands(*o, exact, r, 1, DType::F32, job.w.cols, nullptr, z.data());
      for (uint32_t i = o->row_begin[at]; i < o->row_begin[at + 1]; ++i) {
        const size_t c = o->col[i];
        add(z[c], job.mode == OperandMode::split ? minus[c] : (plus[c] - minus[c]) / (2.0 * eps));
      }
    }
  }
  return made > 0 ? dot * dot / (made * wanted) : 0.0;
}

}  // namespace smezo
