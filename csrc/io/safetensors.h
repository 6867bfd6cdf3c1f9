// The safetensors format (github.com/huggingface/safetensors, README section "Format"), single file and
// sharded folder. The whole header is proved before any of it is trusted: tensors cover the data exactly,
// without hole or overlap, and every size is shape times dtype. After open() every offset is inside its file.
//
//   bytes 0..7      length n of the header, little-endian, at most 100 MB
//   bytes 8..8+n    JSON: {"__metadata__": {text: text},
//                          name: {"dtype": D, "shape": [...], "data_offsets": [begin, end]}, ...}
//   bytes 8+n..end  the data; data_offsets count from here
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "io/file.h"

namespace smezo {

// Bits of one element; 0 for a name not in the table.
int safetensors_dtype_bits(const std::string& dtype);

struct TensorEntry {
  std::string name;
  std::string dtype;  // as written: "F32", "BF16", "I8", ...
  std::vector<int64_t> shape;
  int64_t n = 0;       // product of shape
  int64_t offset = 0;  // of the first byte in its file. Not always a multiple of the element size: old
                       // writers did not pad the header.
  int64_t n_bytes = 0;
  int shard = 0;
};

class Safetensors {
 public:
  // A .safetensors file, or a folder with model.safetensors or model.safetensors.index.json. FormatError,
  // IoError.
  static Safetensors open(const std::string& path);

  const std::vector<TensorEntry>& tensors() const { return tensors_; }  // in byte order of their names
  const TensorEntry* find(const std::string& name) const;               // nullptr: not there
  const TensorEntry& at(const std::string& name) const;                 // FormatError: not there
  const std::map<std::string, std::string>& metadata(int shard = 0) const { return shards_[shard].metadata; }
  int n_shards() const { return static_cast<int>(shards_.size()); }
  const std::string& shard_path(int shard) const { return shards_[shard].file.path(); }
  int64_t shard_bytes(int shard) const { return shards_[shard].map.size(); }

  const uint8_t* data(const TensorEntry& t) const {
    return shards_[t.shard].map.data() + t.offset;
  }  // mapped read-only
  void read(const TensorEntry& t, int64_t first_byte, int64_t n_bytes, void* to) const;  // pread; IoError
  void dont_need(const TensorEntry& t, int64_t first_byte, int64_t n_bytes) const;

 private:
  struct Shard {
    File file;
    Map map;
    std::map<std::string, std::string> metadata;
  };
  void add_shard(const std::string& path);
  void sort_and_check_names();
  std::string path_;
  std::vector<Shard> shards_;
  std::vector<TensorEntry> tensors_;
};

struct TensorSpec {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
};

// What the caller of write_safetensors fills. Tensors may be filled in any order, each from front to back.
class SafetensorsSink {
 public:
  void write(size_t tensor, const void* from, int64_t n_bytes);  // ArgumentError past the tensor's end
  // Replaces a value by one of the same length (a checksum known only at the end).
  void replace_metadata(const std::string& key, const std::string& value);
  const std::vector<size_t>& order() const { return order_; }  // tensors in the order of the data

 private:
  friend void write_safetensors(const std::string&, const std::vector<TensorSpec>&,
                                const std::map<std::string, std::string>&,
                                const std::function<void(SafetensorsSink&)>&);
  SafetensorsSink(File& file, const std::vector<TensorSpec>& tensors,
                  std::map<std::string, std::string> metadata);
  std::string header() const;
  void finish();
  File& file_;
  const std::vector<TensorSpec>& tensors_;
  std::map<std::string, std::string> metadata_;
  std::vector<size_t> order_;  // widest elements first, so that every tensor is aligned to its element
  std::vector<int64_t> begin_, bytes_, done_;
  int64_t data_begin_ = 0;
};

// Through write_atomically: streamed, never held whole. ArgumentError: a dtype not in the table, a name
// twice, a tensor not filled.
void write_safetensors(const std::string& path, const std::vector<TensorSpec>& tensors,
                       const std::map<std::string, std::string>& metadata,
                       const std::function<void(SafetensorsSink&)>& fill);

}  // namespace smezo
