// Each check names what would otherwise be an out-of-range read.
#include "model/batch_check.h"

#include <string>

#include "base/error.h"

namespace smezo {
namespace {

[[noreturn]] void refuse(const std::string& what) { fail<ArgumentError>("batch", what); }

void check_token(int32_t token, const ModelConfig& c, const std::string& where) {
  if (token < 0 || token >= c.vocab_size) {
    refuse("token id " + std::to_string(token) + where + ", expected 0.." + std::to_string(c.vocab_size - 1) +
           "; is the tokenizer this model's?");
  }
}

void check_segments(const Batch& batch, const ModelConfig& c) {
  int64_t at = 0;
  for (size_t i = 0; i < batch.segments.size(); ++i) {
    const Segment& s = batch.segments[i];
    const std::string name = "segment " + std::to_string(i);
    if (s.start != at || s.len < 1)
      refuse(name + " starts at " + std::to_string(s.start) + " with length " + std::to_string(s.len) +
             ", expected to start at " + std::to_string(at) + " with at least one token");
    at += s.len;
    int64_t length = s.len;
    if (s.parent >= 0) {
      if (s.parent >= static_cast<int64_t>(i) || batch.segments[static_cast<size_t>(s.parent)].parent >= 0)
        refuse(name + " has parent " + std::to_string(s.parent) +
               ", expected an earlier segment without a parent");
      length += batch.segments[static_cast<size_t>(s.parent)].len;
      // The text's length sets the frequencies of its prompt too, and another option's may differ.
      if (c.rope.kind == RopeKind::dynamic && length > c.max_position)
        refuse(name + " shares a prompt and is " + std::to_string(length) +
               " tokens long in all, expected at most " + std::to_string(c.max_position) +
               " with dynamic rope; give the prompt to each option instead");
    }
    if (length > c.max_length()) {
      refuse(name + " is " + std::to_string(length) + " tokens long, expected at most " +
             std::to_string(c.max_length()) + " (max_position_embeddings); truncate the text");
    }
  }
  if (at != static_cast<int64_t>(batch.tokens.size()))
    refuse("segments cover " + std::to_string(at) + " of " + std::to_string(batch.tokens.size()) +
           " tokens, expected all");
}

}  // namespace

void check_batch(const Batch& batch, const ModelConfig& c, bool want_logits) {
  if (batch.tokens.empty()) refuse("no tokens; expected at least one");
  for (size_t i = 0; i < batch.tokens.size(); ++i)
    check_token(batch.tokens[i], c, " at position " + std::to_string(i));
  check_segments(batch, c);
  if (batch.labels.empty()) refuse("no label, so nothing to predict; are all labels -100?");
  const bool candidates = batch.task == Task::choice_candidates, choice = batch.task != Task::language_model;
  for (size_t i = 0; i < batch.labels.size(); ++i) {
    const Label& l = batch.labels[i];
    if (l.position < 0 || l.position >= static_cast<int64_t>(batch.tokens.size()))
      refuse("label " + std::to_string(i) + " is at position " + std::to_string(l.position) +
             ", expected 0.." + std::to_string(batch.tokens.size() - 1));
    if (l.example < 0 || l.example >= batch.n_examples)
      refuse("label " + std::to_string(i) + " is of example " + std::to_string(l.example) + ", expected 0.." +
             std::to_string(batch.n_examples - 1));
    if (choice && (l.option < 0 || l.option >= batch.n_options))
      refuse("label " + std::to_string(i) + " is of option " + std::to_string(l.option) + ", expected 0.." +
             std::to_string(batch.n_options - 1));
    if (!candidates && !want_logits) check_token(l.target, c, " as target of label " + std::to_string(i));
  }
  if (candidates && batch.candidates.empty()) refuse("no candidates; expected the token ids of the options");
  if (candidates && static_cast<int64_t>(batch.candidates.size()) != batch.n_options)
    refuse(std::to_string(batch.candidates.size()) +
           " candidates, expected one an option: " + std::to_string(batch.n_options));
  for (size_t i = 0; i < batch.candidates.size(); ++i)
    check_token(batch.candidates[i], c, " as candidate " + std::to_string(i));
  if (!choice) return;
  if (static_cast<int64_t>(batch.answers.size()) != batch.n_examples)
    refuse(std::to_string(batch.answers.size()) +
           " answers, expected one an example: " + std::to_string(batch.n_examples));
  for (const int32_t a : batch.answers) {
    if (a < 0 || a >= batch.n_options)
      refuse("answer " + std::to_string(a) + ", expected 0.." + std::to_string(batch.n_options - 1));
  }
}

}  // namespace smezo
