// The originals of a quantized folder. `quantize --keep` writes the values that the elements of an index file
// had before they were quantized beside the weights, in kept.safetensors: what trains on an index set starts
// from them (Store::set_overlay). The file is part of the base and of its fingerprint.
//
// For each quantized weight X of the index file: `X` F32 [n], the values as they were stored, and
// `X.elements` I32 or I64 [n], the list of the index file. Metadata: "format" "smezo-kept", "format_version"
// "1", "index_hash" (of the index file), "source_fingerprint" (of the model it was made from),
// "base_fingerprint" (of the quantized weights without this file: what tells one that lies beside others),
// "content_hash" (of names, values and elements).
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "io/safetensors.h"
#include "kernels/overlay.h"

namespace smezo {

constexpr const char* kKeptFile = "kept.safetensors";

class Originals {
 public:
  // Proves the header. FormatError, IoError.
  explicit Originals(const std::string& path);

  const std::string& path() const { return file_.shard_path(0); }
  const std::vector<std::string>& names() const { return names_; }  // of weights, in byte order
  int64_t n_elements() const;
  const std::string& index_hash() const { return file_.metadata().at("index_hash"); }
  const std::string& source_fingerprint() const { return file_.metadata().at("source_fingerprint"); }
  const std::string& base_fingerprint() const { return file_.metadata().at("base_fingerprint"); }
  // Hash of the content. FormatError: it is not what was written.
  uint64_t prove() const;
  // Elements of the overlay that were kept get their original; returns how many.
  int64_t fill(const std::string& name, int64_t cols, IndexOverlay& overlay) const;

 private:
  Safetensors file_;
  std::vector<std::string> names_;
};

// What a kept file will hold of one weight.
struct OriginalTensor {
  std::string name;
  std::string list_dtype;  // I32 or I64
  int64_t n;
};

class OriginalsSink {
 public:
  // All of tensor number `tensor`: `elements` as the list's dtype says, n values.
  void write(size_t tensor, const void* elements, const float* values);

 private:
  friend int64_t write_originals(const std::string&, const std::string&, const std::string&,
                                 const std::vector<OriginalTensor>&,
                                 const std::function<std::string(OriginalsSink&)>&);
  SafetensorsSink* to_ = nullptr;
  const std::vector<OriginalTensor>* tensors_ = nullptr;
  std::map<std::string, uint64_t> hashes_;  // of entries, by name
};

// Written new, synced, renamed. `fill` writes every tensor and returns the fingerprint of the quantized
// weights. Returns the bytes of all tensors.
int64_t write_originals(const std::string& path, const std::string& index_hash,
                        const std::string& source_fingerprint, const std::vector<OriginalTensor>& tensors,
                        const std::function<std::string(OriginalsSink&)>& fill);

}  // namespace smezo
