// Writing a model folder that appears complete or not at all.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "io/safetensors.h"

namespace smezo {

using OnProgress = std::function<void(int64_t done_bytes, int64_t all_bytes)>;

// A folder under construction beside its final name; finish() renames it. Without finish() it is removed,
// with the files in it.
class NewFolder {
 public:
  explicit NewFolder(const std::string& path);  // ArgumentError: something is there
  ~NewFolder();
  NewFolder(const NewFolder&) = delete;
  NewFolder& operator=(const NewFolder&) = delete;
  const std::string& path() const { return temporary_; }  // where its files are written
  void finish();

 private:
  std::string path_, temporary_;
  bool finished_ = false;
};

// Of a model folder all files but config.json and weights in any format: the new folder has its own.
void copy_other_files(const std::string& from, const std::string& to);

// Tensors that stay together in one shard: a weight and its scales.
using TensorGroup = std::vector<TensorSpec>;

constexpr int64_t kShardBytes = int64_t{4} << 30;

// Writes model.safetensors, or shards of at most `shard_bytes` (more only where one group alone is larger)
// and model.safetensors.index.json. fill(group, sink, first) writes the group's tensors, which are number
// `first` and following of the sink; groups come in their order. Returns the bytes of all tensors.
int64_t write_shards(const std::string& folder, const std::vector<TensorGroup>& groups, int64_t shard_bytes,
                     const std::function<void(size_t group, SafetensorsSink& sink, size_t first)>& fill);

int64_t spec_bytes(const TensorSpec& spec);

}  // namespace smezo
