// Writing safetensors: the layout is fixed first, then the data streams in, then the header (whose length is
// known from the start).
#include <algorithm>
#include <numeric>
#include <set>

#include "base/error.h"
#include "io/json.h"
#include "io/safetensors.h"

namespace smezo {
namespace {

[[noreturn]] void wrong(const std::string& what) { fail<ArgumentError>("safetensors", what); }

int64_t size_of(const TensorSpec& t) {
  const int bits = safetensors_dtype_bits(t.dtype);
  if (bits == 0)
    wrong("tensor '" + t.name + "' to write has dtype '" + t.dtype + "', expected one of the table");
  int64_t total = bits;
  for (const int64_t d : t.shape)
    if (d < 0 || __builtin_mul_overflow(total, d, &total))
      wrong("tensor '" + t.name + "' to write has a shape with no size");
  if (total % 8) wrong("tensor '" + t.name + "' to write is not whole bytes");
  return total / 8;
}

}  // namespace

SafetensorsSink::SafetensorsSink(File& file, const std::vector<TensorSpec>& tensors,
                                 std::map<std::string, std::string> metadata)
    : file_(file),
      tensors_(tensors),
      metadata_(std::move(metadata)),
      order_(tensors.size()),
      begin_(tensors.size()),
      bytes_(tensors.size()),
      done_(tensors.size()) {
  std::set<std::string> names;
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (tensors[i].name == "__metadata__" || !names.insert(tensors[i].name).second)
      wrong("tensor '" + tensors[i].name + "' to write stands twice or has a reserved name");
    bytes_[i] = size_of(tensors[i]);
  }
  std::iota(order_.begin(), order_.end(), size_t{0});
  std::stable_sort(order_.begin(), order_.end(), [&](size_t a, size_t b) {
    return safetensors_dtype_bits(tensors_[a].dtype) > safetensors_dtype_bits(tensors_[b].dtype);
  });
  int64_t end = 0;
  for (const size_t i : order_) {
    begin_[i] = end;
    if (__builtin_add_overflow(end, bytes_[i], &end)) wrong("the tensors to write are larger than any file");
  }
  data_begin_ = 8 + static_cast<int64_t>(header().size());
  file_.will_hold(data_begin_ + end);
}

// Padded with spaces so that the data begins at a multiple of 8.
std::string SafetensorsSink::header() const {
  Json::Object members;
  if (!metadata_.empty()) {
    Json::Object texts;
    for (const auto& [key, value] : metadata_) texts.emplace_back(key, value);
    members.emplace_back("__metadata__", std::move(texts));
  }
  for (const size_t i : order_) {
    Json::Array shape, offsets{begin_[i], begin_[i] + bytes_[i]};
    for (const int64_t d : tensors_[i].shape) shape.emplace_back(d);
    members.emplace_back(tensors_[i].name, Json::Object{{"dtype", tensors_[i].dtype},
                                                        {"shape", std::move(shape)},
                                                        {"data_offsets", std::move(offsets)}});
  }
  std::string text = Json(std::move(members)).dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  return text;
}

void SafetensorsSink::write(size_t tensor, const void* from, int64_t n_bytes) {
  if (tensor >= tensors_.size())
    wrong("data for tensor number " + std::to_string(tensor) + " of " + std::to_string(tensors_.size()));
  if (n_bytes < 0 || n_bytes > bytes_[tensor] - done_[tensor])
    wrong("tensor '" + tensors_[tensor].name + "' was given " + std::to_string(done_[tensor]) + " + " +
          std::to_string(n_bytes) + " bytes, expected " + std::to_string(bytes_[tensor]));
  file_.write(from, n_bytes, data_begin_ + begin_[tensor] + done_[tensor]);
  done_[tensor] += n_bytes;
}

void SafetensorsSink::replace_metadata(const std::string& key, const std::string& value) {
  const auto at = metadata_.find(key);
  if (at == metadata_.end() || at->second.size() != value.size())
    wrong("metadata '" + key + "' cannot change its length");
  at->second = value;
}

void SafetensorsSink::finish() {
  for (size_t i = 0; i < tensors_.size(); ++i)
    if (done_[i] != bytes_[i])
      wrong("tensor '" + tensors_[i].name + "' was given " + std::to_string(done_[i]) + " bytes, expected " +
            std::to_string(bytes_[i]));
  const std::string text = header();
  const auto n = static_cast<int64_t>(text.size());
  // Characters that JSON escapes could change the length even though the text kept its own.
  if (8 + n != data_begin_) wrong("replaced metadata changed the length of the header");
  uint8_t length[8];
  for (int i = 0; i < 8; ++i) length[i] = static_cast<uint8_t>(static_cast<uint64_t>(n) >> (8 * i));
  file_.write(length, 8, 0);
  file_.write(text.data(), n, 8);
}

void write_safetensors(const std::string& path, const std::vector<TensorSpec>& tensors,
                       const std::map<std::string, std::string>& metadata,
                       const std::function<void(SafetensorsSink&)>& fill) {
  write_atomically(path, [&](File& file) {
    SafetensorsSink sink(file, tensors, metadata);
    fill(sink);
    sink.finish();
  });
}

}  // namespace smezo
