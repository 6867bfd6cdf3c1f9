// The vocabulary is cut into fixed blocks of rows; each keeps its own running maximum and sum, merged in
// block order, so that the result does not depend on which thread had which block (I12).
#include "model/head.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace smezo {
namespace {

using Values = std::vector<std::vector<float>>;

std::vector<size_t> columns_of_labels(const Forward& f) {
  std::vector<size_t> out;
  const std::vector<int64_t>& columns = f.work.columns;
  for (const Label& l : f.batch.labels)
    out.push_back(
        static_cast<size_t>(std::lower_bound(columns.begin(), columns.end(), l.position) - columns.begin()));
  return out;
}

// body(first row of the strip in the vocabulary or list, rows, thread, logits per branch) for all strips of a
// block, in row order.
template <class Body>
void strips_of_block(Forward& f, int64_t head, int64_t row0, int64_t row1, int thread, const int32_t* list,
                     const Body& body) {
  const int64_t n_panels = panels_of(static_cast<int64_t>(f.work.columns.size()));
  const size_t t = static_cast<size_t>(thread);
  for (int64_t r = row0; r < row1; r += f.work.head_rows) {
    const int64_t n = std::min(f.work.head_rows, row1 - r);
    const StripRows rows = list ? StripRows{0, n, list + r} : StripRows{r, n, nullptr};
    f.weights.multiply_strip(head, rows, f.work.packed, n_panels, f.work.logits[t], f.work.head_ld,
                             Epilogue::store, f.work.strip[t]);
    body(r, n, f.work.logits[t]);
  }
}

// Logits of `n_rows` rows (all of the vocabulary, or the list's), label-major.
Values logits_of_rows(Forward& f, int64_t head, int64_t n_rows, const int32_t* list) {
  const std::vector<size_t> column = columns_of_labels(f);
  Values values(static_cast<size_t>(f.n_branches()),
                std::vector<float>(column.size() * static_cast<size_t>(n_rows)));
  const int64_t n_blocks = (n_rows + kVocabularyBlock - 1) / kVocabularyBlock;
  f.context.pool->run(n_blocks, [&](int64_t block, int thread) {
    const int64_t row0 = block * kVocabularyBlock, row1 = std::min(row0 + kVocabularyBlock, n_rows);
    strips_of_block(f, head, row0, row1, thread, list,
                    [&](int64_t r, int64_t n, const std::vector<float*>& logits) {
                      for (size_t b = 0; b < values.size(); ++b) {
                        for (size_t l = 0; l < column.size(); ++l) {
                          float* const out = values[b].data() + static_cast<int64_t>(l) * n_rows + r;
                          for (int64_t i = 0; i < n; ++i)
                            out[i] = logits[b][i * f.work.head_ld + static_cast<int64_t>(column[l])];
                        }
                      }
                    });
  });
  return values;
}

Values log_probabilities(Forward& f, int64_t head) {
  const std::vector<size_t> column = columns_of_labels(f);
  const int64_t n_rows = f.config.vocab_size, ld = f.work.head_ld;
  const int64_t n_blocks = (n_rows + kVocabularyBlock - 1) / kVocabularyBlock;
  const int64_t n_panels = panels_of(static_cast<int64_t>(f.work.columns.size()));
  const size_t n_branches = static_cast<size_t>(f.n_branches());
  // Labels by target, so that a strip finds its own.
  std::vector<size_t> by_target(column.size());
  for (size_t l = 0; l < by_target.size(); ++l) by_target[l] = l;
  const auto target = [&](size_t l) { return static_cast<int64_t>(f.batch.labels[l].target); };
  std::sort(by_target.begin(), by_target.end(), [&](size_t a, size_t b) { return target(a) < target(b); });

  Values values(n_branches, std::vector<float>(column.size()));  // first the targets' logits
  const auto partial = [&](float* base, int64_t block, size_t b) {
    return base + (block * static_cast<int64_t>(n_branches) + static_cast<int64_t>(b)) * ld;
  };
  f.context.pool->run(n_blocks, [&](int64_t block, int thread) {
    const int64_t row0 = block * kVocabularyBlock, row1 = std::min(row0 + kVocabularyBlock, n_rows);
    for (size_t b = 0; b < n_branches; ++b) {
      std::fill_n(partial(f.work.block_max, block, b), ld, -std::numeric_limits<float>::infinity());
      std::fill_n(partial(f.work.block_sum, block, b), ld, 0.0f);
    }
    auto next = std::lower_bound(by_target.begin(), by_target.end(), row0,
                                 [&](size_t l, int64_t r) { return target(l) < r; });
    strips_of_block(
        f, head, row0, row1, thread, nullptr, [&](int64_t r, int64_t n, const std::vector<float*>& logits) {
          for (size_t b = 0; b < n_branches; ++b) {
            f.context.kernels->lse_update(logits[b], n, ld, n_panels, partial(f.work.block_max, block, b),
                                          partial(f.work.block_sum, block, b));
          }
          for (; next != by_target.end() && target(*next) < r + n; ++next) {
            const int64_t at = (target(*next) - r) * ld + static_cast<int64_t>(column[*next]);
            for (size_t b = 0; b < n_branches; ++b) values[b][*next] = logits[b][at];
          }
        });
  });
  for (size_t b = 0; b < n_branches; ++b) {
    std::vector<double> lse(f.work.columns.size());
    for (size_t c = 0; c < lse.size(); ++c) {
      float max = -std::numeric_limits<float>::infinity();
      for (int64_t k = 0; k < n_blocks; ++k) max = std::max(max, partial(f.work.block_max, k, b)[c]);
      double sum = 0;
      for (int64_t k = 0; k < n_blocks; ++k) {
        const double below =
            static_cast<double>(partial(f.work.block_max, k, b)[c]) - static_cast<double>(max);
        sum += static_cast<double>(partial(f.work.block_sum, k, b)[c]) * std::exp(below);
      }
      lse[c] = static_cast<double>(max) + std::log(sum);
    }
    for (size_t l = 0; l < column.size(); ++l)
      values[b][l] = static_cast<float>(static_cast<double>(values[b][l]) - lse[column[l]]);
  }
  return values;
}

}  // namespace

Values run_head(Forward& f, const ModelTensors& tensors, bool want_logits) {
  norm_and_pack(f, tensors.norm, panels_of(static_cast<int64_t>(f.work.columns.size())));
  f.times.spent(Part::other);
  f.weights.catch_up(tensors.head);
  Values values;
  if (want_logits) {
    values = logits_of_rows(f, tensors.head, f.config.vocab_size, nullptr);
  } else if (f.batch.task == Task::choice_candidates) {
    values = logits_of_rows(f, tensors.head, static_cast<int64_t>(f.batch.candidates.size()),
                            f.batch.candidates.data());
  } else {
    values = log_probabilities(f, tensors.head);
  }
  f.times.spent(Part::head);
  return values;
}

}  // namespace smezo
