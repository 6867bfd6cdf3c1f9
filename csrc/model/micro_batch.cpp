#include "model/micro_batch.h"

#include <algorithm>

namespace smezo {
namespace {

// The segment that each packed token lies in.
std::vector<size_t> segment_of_tokens(const Batch& batch) {
  std::vector<size_t> out(batch.tokens.size());
  for (size_t s = 0; s < batch.segments.size(); ++s)
    std::fill_n(out.begin() + batch.segments[s].start, batch.segments[s].len, s);
  return out;
}

int64_t n_roots(const Batch& batch) {
  return std::count_if(batch.segments.begin(), batch.segments.end(),
                       [](const Segment& s) { return s.parent < 0; });
}

size_t root_of(const Batch& batch, size_t s) {
  return batch.segments[s].parent < 0 ? s : static_cast<size_t>(batch.segments[s].parent);
}

// Of each segment: the micro-batch of n that it goes to, by the tokens before its middle; -1: none. Are there
// as many as roots, each has its own.
std::vector<int64_t> places(const Batch& batch, const std::vector<size_t>& segment_of, int64_t n) {
  const size_t n_segments = batch.segments.size();
  std::vector<int64_t> n_tokens(n_segments, 0);  // of a root with its children
  std::vector<bool> wanted(n_segments, false);
  for (const Label& l : batch.labels)
    wanted[root_of(batch, segment_of[static_cast<size_t>(l.position)])] = true;
  int64_t total = 0;
  for (size_t s = 0; s < n_segments; ++s) {
    if (!wanted[root_of(batch, s)]) continue;
    n_tokens[root_of(batch, s)] += batch.segments[s].len;
    total += batch.segments[s].len;
  }
  std::vector<int64_t> out(n_segments, -1);
  const bool finest = n >= std::count(wanted.begin(), wanted.end(), true);
  int64_t before = 0, n_before = 0;
  for (size_t s = 0; s < n_segments; ++s) {
    if (!wanted[s]) continue;
    out[s] = finest ? n_before : (2 * before + n_tokens[s]) * n / (2 * total);
    before += n_tokens[s];
    ++n_before;
  }
  for (size_t s = 0; s < n_segments; ++s) out[s] = out[root_of(batch, s)];
  return out;
}

}  // namespace

std::vector<MicroBatch> cut(const Batch& batch, int64_t n) {
  const std::vector<size_t> segment_of = segment_of_tokens(batch);
  const std::vector<int64_t> place = places(batch, segment_of, n);
  std::vector<MicroBatch> parts(static_cast<size_t>(n));
  std::vector<int64_t> new_number(batch.segments.size()), new_start(batch.segments.size());
  for (size_t s = 0; s < batch.segments.size(); ++s) {
    if (place[s] < 0) continue;
    Batch& to = parts[static_cast<size_t>(place[s])].batch;
    const Segment& from = batch.segments[s];
    new_number[s] = static_cast<int64_t>(to.segments.size());
    new_start[s] = static_cast<int64_t>(to.tokens.size());
    to.segments.push_back(
        {new_start[s], from.len, from.parent < 0 ? -1 : new_number[static_cast<size_t>(from.parent)]});
    const auto first = batch.tokens.begin() + from.start;
    to.tokens.insert(to.tokens.end(), first, first + from.len);
  }
  for (size_t l = 0; l < batch.labels.size(); ++l) {
    Label label = batch.labels[l];
    const size_t s = segment_of[static_cast<size_t>(label.position)];
    MicroBatch& to = parts[static_cast<size_t>(place[s])];
    label.position += new_start[s] - batch.segments[s].start;
    to.batch.labels.push_back(label);
    to.labels.push_back(l);
  }
  std::erase_if(parts, [](const MicroBatch& p) { return p.batch.tokens.empty(); });
  for (MicroBatch& p : parts) {
    p.batch.candidates = batch.candidates;
    p.batch.answers = batch.answers;
    p.batch.n_examples = batch.n_examples;
    p.batch.n_options = batch.n_options;
    p.batch.task = batch.task;
  }
  return parts;
}

MicroBatches micro_batches_for(const Batch& batch, int64_t room,
                               const std::function<int64_t(const Batch&)>& forward_bytes,
                               int64_t value_bytes) {
  const MicroBatches whole{{}, forward_bytes(batch)};
  MicroBatches out = whole;
  const int64_t finest = n_roots(batch);
  for (int64_t n = room > 0 ? 2 : finest; 2 <= n && n <= finest && out.forward_bytes > room; ++n) {
    out.parts = cut(batch, n);
    out.forward_bytes = 0;
    for (const MicroBatch& p : out.parts)
      out.forward_bytes = std::max(out.forward_bytes, value_bytes + forward_bytes(p.batch));
  }
  // The values of micro-batches lie beside the whole batch's.
  return out.forward_bytes > room && whole.forward_bytes < out.forward_bytes ? whole : out;
}

void put_into(ForwardResult& whole, size_t n_labels, const MicroBatch& part, const ForwardResult& found) {
  const size_t width = found.values[0].size() / part.labels.size();
  if (whole.values.empty()) {
    whole.values.assign(found.values.size(), std::vector<float>(n_labels * width));
    whole.parts = found.parts;
  } else {
    for (size_t p = 0; p < whole.parts.size(); ++p) whole.parts[p].second += found.parts[p].second;
  }
  for (size_t b = 0; b < whole.values.size(); ++b) {
    for (size_t l = 0; l < part.labels.size(); ++l) {
      std::copy_n(found.values[b].begin() + static_cast<int64_t>(l * width), width,
                  whole.values[b].begin() + static_cast<int64_t>(part.labels[l] * width));
    }
  }
}

}  // namespace smezo
