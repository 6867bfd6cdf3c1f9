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

// What the rows of the head are taken from: a unit of it, or views of the candidates.
struct Source {
  const WeightView* w = nullptr;
  const RowViews* views = nullptr;
  const int32_t* list = nullptr;
};

// body(first row of the strip in the vocabulary or list, rows, thread, logits per branch) for all strips of a
// block, in row order.
template <class Body>
void strips_of_block(Forward& f, int64_t head, int64_t row0, int64_t row1, int thread, const Source& from,
                     const Body& body) {
  const int64_t n_panels = panels_of(static_cast<int64_t>(f.work.columns.size()));
  const size_t t = static_cast<size_t>(thread);
  for (int64_t r = row0; r < row1; r += f.work.head_rows) {
    const int64_t n = std::min(f.work.head_rows, row1 - r);
    const StripRows rows{from.w, from.views, from.list ? 0 : r, n, from.list ? from.list + r : nullptr};
    f.weights.multiply_strip(head, rows, f.work.packed, n_panels, f.work.logits[t], f.work.head_ld,
                             Epilogue::store, f.work.strip[t]);
    body(r, n, f.work.logits[t]);
  }
}

// body(block, its first row, the row after its last, thread, source) for blocks of rows [begin, end), in
// parallel.
template <class Body>
void for_blocks(Forward& f, int64_t begin, int64_t end, const Body& body) {
  const int64_t first = begin / kVocabularyBlock, last = (end + kVocabularyBlock - 1) / kVocabularyBlock;
  f.context.pool->run(last - first, [&](int64_t i, int thread) {
    const int64_t row0 = (first + i) * kVocabularyBlock;
    body(first + i, row0, std::min(row0 + kVocabularyBlock, end), thread);
  });
}

// The same for the whole vocabulary, unit by unit; units begin with a block.
template <class Body>
void for_vocabulary(Forward& f, int64_t head, const Body& body) {
  f.weights.for_units(head, [&](const Unit& unit, const WeightView& w) {
    for_blocks(f, unit.row0, unit.row0 + unit.n_rows,
               [&](int64_t block, int64_t row0, int64_t row1, int thread) {
                 body(block, row0, row1, thread, Source{&w, nullptr, nullptr});
               });
  });
}

// Logits of all of the vocabulary, or of the candidates, label-major.
Values all_logits(Forward& f, int64_t head, const std::vector<int32_t>* list) {
  const std::vector<size_t> column = columns_of_labels(f);
  const int64_t n_rows = list ? static_cast<int64_t>(list->size()) : f.config.vocab_size;
  Values values(static_cast<size_t>(f.n_branches()),
                std::vector<float>(column.size() * static_cast<size_t>(n_rows)));
  const auto fill = [&](int64_t, int64_t row0, int64_t row1, int thread, const Source& from) {
    strips_of_block(f, head, row0, row1, thread, from,
                    [&](int64_t r, int64_t n, const std::vector<float*>& logits) {
                      for (size_t b = 0; b < values.size(); ++b) {
                        for (size_t l = 0; l < column.size(); ++l) {
                          float* const out = values[b].data() + static_cast<int64_t>(l) * n_rows + r;
                          for (int64_t i = 0; i < n; ++i)
                            out[i] = logits[b][i * f.work.head_ld + static_cast<int64_t>(column[l])];
                        }
                      }
                    });
  };
  if (list == nullptr) {
    for_vocabulary(f, head, fill);
  } else {
    const RowViews views = f.weights.rows(head, *list);
    for_blocks(f, 0, n_rows, [&](int64_t block, int64_t row0, int64_t row1, int thread) {
      fill(block, row0, row1, thread, {nullptr, &views, list->data()});
    });
  }
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
  for_vocabulary(f, head, [&](int64_t block, int64_t row0, int64_t row1, int thread, const Source& from) {
    for (size_t b = 0; b < n_branches; ++b) {
      std::fill_n(partial(f.work.block_max, block, b), ld, -std::numeric_limits<float>::infinity());
      std::fill_n(partial(f.work.block_sum, block, b), ld, 0.0f);
    }
    auto next = std::lower_bound(by_target.begin(), by_target.end(), row0,
                                 [&](size_t l, int64_t r) { return target(l) < r; });
    strips_of_block(
        f, head, row0, row1, thread, from, [&](int64_t r, int64_t n, const std::vector<float*>& logits) {
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
  f.weights.load_vectors({tensors.norm});
  norm_and_pack(f, tensors.norm, panels_of(static_cast<int64_t>(f.work.columns.size())));
  f.times.spent(Part::other);
  f.weights.catch_up(tensors.head);
  Values values;
  if (want_logits) {
    values = all_logits(f, tensors.head, nullptr);
  } else if (f.batch.task == Task::choice_candidates) {
    values = all_logits(f, tensors.head, &f.batch.candidates);
  } else {
    values = log_probabilities(f, tensors.head);
  }
  f.times.spent(Part::head);
  return values;
}

}  // namespace smezo
