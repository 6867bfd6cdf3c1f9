// Trained state at one watermark, as a safetensors file that proves its own content. Deltas and generations
// are this container.
//
// Metadata: "format" ("smezo-delta" or "smezo-generation"), "format_version" ("1"), "method" (JSON),
// "base_fingerprint", "watermark" (decimal step), "journal_tail" (8 hex digits: the journal's chain at the
// watermark), "packed" (JSON array of names), "crc32c" (8 hex digits for each tensor entry, in the order of
// the data), and whatever the caller adds. A tensor stored as BF16T8 is two entries: `name` (BF16) and
// `name.tail` (I8). A packed tensor holds its values on the method's support only, in element order, as one
// dimension; the support is not stored: the base regenerates it.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "io/safetensors.h"

namespace smezo {

enum class StateKind : uint8_t { delta, generation };

struct StateHeader {
  std::string method_json;
  std::string base_fingerprint;
  uint32_t watermark = 0;
  uint32_t journal_tail = 0;
  std::map<std::string, std::string> extra;
};

struct StateTensor {
  std::string name;
  DType dtype = DType::F32;    // F32, BF16, BF16T8
  std::vector<int64_t> shape;  // packed: one dimension, the number of values
  bool packed = false;
  int64_t n() const;
};

// The name of an update rule's numbers beside a tensor's values.
inline std::string moment_name(const std::string& name, int k) {
  return name + ".moment" + std::to_string(k);
}

class StateSink {
 public:
  // The next n values of a tensor; tail only for BF16T8. Tensors in any order, each from front to back.
  void write(size_t tensor, const void* values, const int8_t* tail, int64_t n);

 private:
  friend void write_state(const std::string&, StateKind, const StateHeader&, const std::vector<StateTensor>&,
                          const std::function<void(StateSink&)>&);
  SafetensorsSink* to_ = nullptr;
  const std::vector<StateTensor>* tensors_ = nullptr;
  std::vector<size_t> values_at_, tail_at_;  // entry of each tensor
  std::vector<uint32_t> crc_;                // of each entry
};

// Written new, synced, renamed: a reader sees the old file or this one. Streamed. ArgumentError, IoError.
void write_state(const std::string& path, StateKind kind, const StateHeader& header,
                 const std::vector<StateTensor>& tensors, const std::function<void(StateSink&)>& fill);

class StateReader {
 public:
  // Proves the header; the content of a tensor is proved by verify(). FormatError, IoError.
  static StateReader open(const std::string& path, StateKind kind);
  const StateHeader& header() const { return header_; }
  const std::vector<StateTensor>& tensors() const { return tensors_; }  // in byte order of their names
  int64_t find(const std::string& name) const;                          // index, or -1
  // Names this description and content: of method, watermark and the checksums of all entries, 16 hex digits.
  std::string identity() const;
  int64_t file_bytes() const { return file_.shard_bytes(0); }
  const std::string& path() const { return file_.shard_path(0); }
  const TensorEntry& values_entry(size_t tensor) const { return values_[tensor]; }
  const TensorEntry& tail_entry(size_t tensor) const { return tails_[tensor]; }  // empty unless BF16T8
  const void* values(size_t tensor) const;  // mapped; aligned to its element
  const int8_t* tail(size_t tensor) const;  // nullptr unless BF16T8
  void verify(size_t tensor) const;         // FormatError: the bytes are not those that were written
  void verify_all() const;
  // The tensor's pages leave this process's memory; they are read again when touched.
  void release(size_t tensor) const;

 private:
  explicit StateReader(Safetensors file) : file_(std::move(file)) {}
  Safetensors file_;
  StateHeader header_;
  std::vector<StateTensor> tensors_;
  std::vector<TensorEntry> values_, tails_;  // per tensor
  std::vector<uint32_t> values_crc_, tails_crc_;
};

}  // namespace smezo
