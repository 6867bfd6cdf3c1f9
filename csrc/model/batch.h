// What one forward reads: packed tokens without padding, and the positions where an answer is wanted.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

namespace smezo {

// A run of tokens that attends causally to itself and, when parent >= 0, to the whole of an earlier segment
// (so that a prompt shared by several options is computed once). Rope positions start at 0, or after the
// parent.
struct Segment {
  int64_t start = 0;  // first packed token
  int64_t len = 0;
  int64_t parent = -1;  // index of an earlier segment that itself has no parent
};

// One prediction: the logits at packed position `position` predict `target`.
struct Label {
  int64_t position = 0;
  int32_t target = -1;  // token id; with candidates: -1
  int32_t example = 0;  // in [0, n_examples)
  int32_t option = 0;   // in [0, n_options); 0 for plain language modelling
};

enum class Reduction : uint8_t { example, token };

// How per-example losses are made of labels (engine/loss.h).
enum class Task : uint8_t {
  language_model,     // example loss: sum of -log p(target) over its labels, count = number of labels
  choice_candidates,  // one label an example; scores = logits of `candidates`; loss = cross-entropy of
                      // `answer`
  choice_sequences,   // score of an option = mean log p(target) over its labels; loss = cross-entropy of
                      // `answer`
};

struct Batch {
  std::vector<int32_t> tokens;      // [T]
  std::vector<Segment> segments;    // cover [0, T) in order, without overlap
  std::vector<Label> labels;        // [n_labels]
  std::vector<int32_t> candidates;  // [n_options] token ids, choice_candidates only
  std::vector<int32_t> answers;     // [n_examples] right option, choice tasks only
  int32_t n_examples = 0;
  int32_t n_options = 0;
  Task task = Task::language_model;
};

// Tokens of the longest text, a prompt counted with each of its options.
inline int64_t longest_text(const Batch& batch) {
  int64_t longest = 0;
  for (const Segment& s : batch.segments)
    longest =
        std::max(longest, s.len + (s.parent >= 0 ? batch.segments[static_cast<size_t>(s.parent)].len : 0));
  return longest;
}

// Does a forward ask all of the vocabulary, or only candidates?
inline bool asks_whole_head(const Batch& batch, bool want_logits) {
  return want_logits || batch.task != Task::choice_candidates;
}

}  // namespace smezo
