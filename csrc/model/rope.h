// Rotary position embedding: frequencies of every kind, and the cos and sin tables of a batch's columns.
#pragma once
#include <cstdint>
#include <vector>

#include "model/config.h"

namespace smezo {

// [head_dim / 2] inverse frequencies for a text of `length` tokens; only the dynamic kind depends on the
// length.
std::vector<float> inverse_frequencies(const RopeConfig& rope, int64_t head_dim, int64_t max_position,
                                       int64_t length);

// cos and sin of every position, made once and kept: most batches use the same few positions again and again.
class RopeTable {
  struct Row {
    float cos, sin;
  };

 public:
  explicit RopeTable(const ModelConfig& config);

  // Of tables for texts of so many tokens.
  static int64_t bytes(const ModelConfig& config, int64_t length) {
    return length * (config.head_dim / 2) * static_cast<int64_t>(sizeof(Row));
  }
  int64_t size_bytes() const { return static_cast<int64_t>(rows_.capacity() * sizeof(Row)); }
  // Before texts that are longer than those before: at once, not doubling on the way.
  void reserve(int64_t length) { rows_.reserve(static_cast<size_t>(length * half_)); }
  // Column `column` of cos, sin [head_dim / 2][ld] gets `position` of a text of `length` tokens in all. With
  // the dynamic kind a text's own length sets the frequencies, not the longest of the batch as in
  // transformers, so a text's result does not depend on its neighbours (I12); for a single text both are the
  // same.
  void fill(int64_t position, int64_t length, int64_t column, int64_t ld, float* cos, float* sin);

 private:
  void append(const std::vector<float>& inverse, int64_t position, std::vector<Row>& rows) const;

  RopeConfig rope_;
  int64_t half_, max_position_;
  std::vector<float> inverse_;  // of every length up to max_position
  std::vector<Row> rows_;       // [positions so far][half]
  int64_t stretched_length_ = 0;
  std::vector<float> stretched_;  // dynamic, of stretched_length_
};

}  // namespace smezo
