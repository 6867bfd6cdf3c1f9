#include "model/factors.h"

#include <iterator>

#include "base/error.h"
#include "format/half.h"

namespace smezo {

// Not by malloc, which would keep what the factors of an epoch leave behind.
static Pages pages_of(int64_t n_bytes) {
  Pages out = allocate_pages(n_bytes);
  check<BudgetError>(out != nullptr, "factors", "no memory for the factors of a tensor");
  return out;
}

Factors::Factors(const LowRank& d, uint64_t run_seed, uint32_t tensor_id, int64_t m, int64_t n,
                 uint32_t epoch, const Kernels& kernels, ThreadPool& pool)
    : d_(d), run_seed_(run_seed), tensor_id_(tensor_id), m_(m), n_(n), epoch_(epoch), kernels_(&kernels) {
  if (d_.kind != LowRankKind::uzv) return;
  pool.run(2, [&](int64_t side, int) {
    const Stream stream =
        side == 0 ? u_stream(run_seed, tensor_id, epoch) : v_stream(run_seed, tensor_id, epoch);
    const int64_t rows = side == 0 ? m : n, all = rows * d.rank;
    const Pages columns = pages_of(all * static_cast<int64_t>(sizeof(double)));
    double* const from = static_cast<double*>(columns.get());
    orthonormal_columns(stream, rows, d.rank, from);
    Pages& kept = side == 0 ? u_ : v_;
    kept = pages_of(all * static_cast<int64_t>(sizeof(uint16_t)));
    uint16_t* const to = static_cast<uint16_t*>(kept.get());
    for (int64_t i = 0; i < all; ++i) {
      // u is read by rows.
      const int64_t s = i / rows, row = i % rows;
      to[side == 0 ? row * d.rank + s : i] = f32_to_bf16(static_cast<float>(from[i]));
    }
  });
}

// The other kinds of noise are such numbers as they are.
void Factors::to_bf16_numbers(float* values, int64_t n) const {
  if (d_.noise != NoiseKind::gaussian) return;
  for (int64_t i = 0; i < n; ++i) values[i] = round_bf16(values[i]);
}

void Factors::v_column(int s, float* out) const {
  if (d_.kind == LowRankKind::uzv) {
    for (int64_t j = 0; j < n_; ++j) out[j] = bf16_to_f32(static_cast<const uint16_t*>(v_.get())[s * n_ + j]);
    return;
  }
  TensorDirection noise;
  noise.noise = d_.noise;
  noise.stream = v_stream(run_seed_, tensor_id_, epoch_);
  kernels_->noise(noise, s * n_, n_, out);
  to_bf16_numbers(out, n_);
}

void Factors::u_rows(int64_t row0, int64_t n_rows, uint32_t step, uint32_t query, float* out) const {
  if (d_.kind == LowRankKind::uzv) {
    const uint16_t* const from = static_cast<const uint16_t*>(u_.get()) + row0 * d_.rank;
    for (int64_t i = 0; i < n_rows * d_.rank; ++i) out[i] = bf16_to_f32(from[i]);
    return;
  }
  TensorDirection noise;
  noise.noise = d_.noise;
  noise.stream = d_.kind == LowRankKind::uv ? query_stream(run_seed_, tensor_id_, step, query)
                                            : u_stream(run_seed_, tensor_id_, epoch_);
  kernels_->noise(noise, row0 * d_.rank, n_rows * d_.rank, out);
  to_bf16_numbers(out, n_rows * d_.rank);
}

std::shared_ptr<const Factors> FactorSource::of(const LowRank& d, uint32_t id, int64_t m, int64_t n,
                                                uint32_t epoch) {
  const auto made = [&] {
    return std::make_shared<const Factors>(d, run_seed_, id, m, n, epoch, kernels_, pool_);
  };
  if (d.kind != LowRankKind::uzv) return made();
  if (const auto found = kept_.find({id, epoch}); found != kept_.end()) return found->second;
  const std::shared_ptr<const Factors> fresh = made();
  const auto newest = kept_.upper_bound({id, UINT32_MAX});
  const bool is_newer = newest == kept_.begin() || std::prev(newest)->first.first != id ||
                        std::prev(newest)->first.second < epoch;
  if (keeps_all_ || is_newer) {
    // Records are applied up to the newest epoch: an older one is not asked for again.
    if (!keeps_all_) kept_.erase(kept_.lower_bound({id, 0}), newest);
    kept_[{id, epoch}] = fresh;
  }
  return fresh;
}

}  // namespace smezo
