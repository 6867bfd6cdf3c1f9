#include "store/originals.h"

#include <algorithm>

#include "base/error.h"
#include "store/content_hash.h"
#include "store/index_file.h"

namespace smezo {
namespace {

const std::string kElements = ".elements";
constexpr int64_t kPieceBytes = int64_t{1} << 16;

[[noreturn]] void bad(const std::string& path, const std::string& what) {
  fail<FormatError>("kept originals", "'" + path + "': " + what);
}

bool is_list(const std::string& name) {
  return name.size() > kElements.size() &&
         name.compare(name.size() - kElements.size(), kElements.size(), kElements) == 0;
}

uint64_t content_of(const std::map<std::string, uint64_t>& hashes) {
  uint64_t h = content_hash::kStart;
  for (const auto& [name, hash] : hashes)
    h = hash_join(hash_join(h, hash_bytes(name.data(), static_cast<int64_t>(name.size()))), hash);
  return h;
}

}  // namespace

Originals::Originals(const std::string& path) : file_(Safetensors::open(path)) {
  const auto& m = file_.metadata();
  const auto need = [&](const char* key, const std::string& expected) {
    const auto at = m.find(key);
    if (at == m.end() || (!expected.empty() && at->second != expected))
      bad(path, std::string("metadata '") + key + "' is " + (at == m.end() ? "missing" : at->second) +
                    ", expected " + (expected.empty() ? "it" : expected) +
                    "; not what `pysmezo quantize --keep` writes, or another release's?");
  };
  need("format", "smezo-kept");
  need("format_version", "1");
  for (const char* key : {"index_hash", "source_fingerprint", "base_fingerprint", "content_hash"})
    need(key, "");
  for (const TensorEntry& e : file_.tensors()) {
    const bool list = is_list(e.name);
    const TensorEntry* other =
        file_.find(list ? e.name.substr(0, e.name.size() - kElements.size()) : e.name + kElements);
    const bool good = list ? e.dtype == "I32" || e.dtype == "I64" : e.dtype == "F32";
    if (!good || other == nullptr || other->shape != e.shape || e.shape.size() != 1)
      bad(path, "tensor '" + e.name + "' is " + e.dtype +
                    ", expected F32 values and as many I32 or I64 elements under '.elements'; damaged?");
    if (!list) names_.push_back(e.name);
  }
}

int64_t Originals::n_elements() const {
  int64_t n = 0;
  for (const std::string& name : names_) n += file_.at(name).n;
  return n;
}

uint64_t Originals::prove() const {
  std::map<std::string, uint64_t> hashes;
  std::vector<uint8_t> piece(static_cast<size_t>(kPieceBytes));
  for (const TensorEntry& e : file_.tensors()) {
    ContentHash h;
    for (int64_t at = 0; at < e.n_bytes; at += kPieceBytes) {
      const int64_t n = std::min(kPieceBytes, e.n_bytes - at);
      file_.read(e, at, n, piece.data());
      h.add(piece.data(), n);
    }
    hashes[e.name] = h.value();
  }
  const uint64_t found = content_of(hashes);
  const std::string& written = file_.metadata().at("content_hash");
  if (hash_text(found) != written)
    bad(path(), "content of hash " + hash_text(found) + ", expected " + written + " as written; damaged?");
  return found;
}

int64_t Originals::fill(const std::string& name, int64_t cols, IndexOverlay& o) const {
  const TensorEntry* const entry = file_.find(name);
  if (entry == nullptr) return 0;
  std::vector<float> values;
  int64_t n_found = 0, row = 0;
  uint32_t i = 0;
  // Both lists increase.
  for_elements(file_, file_.at(name + kElements), [&](int64_t first, const std::vector<int64_t>& elements) {
    values.resize(elements.size());
    file_.read(*entry, first * 4, static_cast<int64_t>(elements.size()) * 4, values.data());
    for (size_t k = 0; k < elements.size(); ++k) {
      for (; i < o.value.size(); ++i) {
        while (o.row_begin[static_cast<size_t>(row) + 1] <= i) ++row;
        const int64_t e = row * cols + o.col[i];
        if (e > elements[k]) break;
        if (e == elements[k]) o.value[i] = values[k], ++n_found;
      }
    }
  });
  return n_found;
}

void OriginalsSink::write(size_t tensor, const void* elements, const float* values) {
  const OriginalTensor& t = (*tensors_)[tensor];
  const int64_t list_bytes = t.n * (t.list_dtype == "I64" ? 8 : 4);
  to_->write(2 * tensor, values, t.n * 4);
  to_->write(2 * tensor + 1, elements, list_bytes);
  hashes_[t.name] = hash_bytes(values, t.n * 4);
  hashes_[t.name + kElements] = hash_bytes(elements, list_bytes);
}

int64_t write_originals(const std::string& path, const std::string& index_hash,
                        const std::string& source_fingerprint, const std::vector<OriginalTensor>& tensors,
                        const std::function<std::string(OriginalsSink&)>& fill) {
  std::vector<TensorSpec> specs;
  int64_t n_bytes = 0;
  for (const OriginalTensor& t : tensors) {
    specs.push_back({t.name, "F32", {t.n}});
    specs.push_back({t.name + kElements, t.list_dtype, {t.n}});
    n_bytes += t.n * (t.list_dtype == "I64" ? 12 : 8);
  }
  const std::string later(16, '0');  // known when all is written
  write_safetensors(path, specs,
                    {{"format", "smezo-kept"},
                     {"format_version", "1"},
                     {"index_hash", index_hash},
                     {"source_fingerprint", source_fingerprint},
                     {"base_fingerprint", later},
                     {"content_hash", later}},
                    [&](SafetensorsSink& to) {
                      OriginalsSink sink;
                      sink.to_ = &to;
                      sink.tensors_ = &tensors;
                      to.replace_metadata("base_fingerprint", fill(sink));
                      to.replace_metadata("content_hash", hash_text(content_of(sink.hashes_)));
                    });
  return n_bytes;
}

}  // namespace smezo
