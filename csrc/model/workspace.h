// Buffers of one forward, and where its time goes.
#pragma once
#include <array>
#include <chrono>
#include <cstdint>
#include <vector>

#include "model/arena.h"
#include "model/batch.h"
#include "model/config.h"
#include "model/sizes.h"

namespace smezo {

enum class Part : uint8_t { embed, qkv, attention, o, mlp, head, other };
constexpr int kParts = 7;
constexpr std::array<const char*, kParts> kPartNames = {"embed", "qkv",  "attention", "o",
                                                        "mlp",   "head", "other"};

class PartTimes {
 public:
  // The time since the last call goes to `part`.
  void spent(Part part) {
    const auto now = std::chrono::steady_clock::now();
    seconds_[static_cast<size_t>(part)] += std::chrono::duration<double>(now - last_).count();
    last_ = now;
  }
  double seconds(int part) const { return seconds_[static_cast<size_t>(part)]; }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
  std::array<double, kParts> seconds_{};
};

// Activations are [features][ld]. After the last attention only the columns that a label reads are kept,
// moved to the front in place.
struct Workspace {
  int64_t n_tokens = 0;
  int64_t ld = 0;                // columns of every activation buffer
  std::vector<int64_t> columns;  // packed positions that labels read, increasing, without repeats
  // One a branch.
  std::vector<float*> x;        // residual stream
  std::vector<float*> q, k, v;  // attended values take the place of q
  std::vector<void*> packed;    // input of a product
  std::vector<void*> gated;     // input of down; shares memory with q, k, v: not alive at the same time
  float *cos = nullptr, *sin = nullptr;  // [head_dim / 2][ld]
  // One a thread.
  std::vector<char*> strip;
  std::vector<float*> attention_scratch;
  std::vector<std::vector<float*>> logits;  // [thread][branch], [head_rows][head_ld]
  int64_t head_rows = 0, head_ld = 0;
  // [vocabulary block][branch]: running maximum and sum of label columns, head_ld each.
  float *block_max = nullptr, *block_sum = nullptr;
};

constexpr int64_t kVocabularyBlock = 512;

inline int64_t panels_of(int64_t n_tokens) { return (n_tokens + kLanes - 1) / kLanes; }

// whole_head: all of the vocabulary is asked, not only candidates. only_bytes: nothing is allocated, the size
// is put there and the buffers are null.
Workspace plan_workspace(Arena& arena, const ModelConfig& config, const Batch& batch,
                         const ForwardShape& shape, bool whole_head, int64_t* only_bytes = nullptr);

}  // namespace smezo
