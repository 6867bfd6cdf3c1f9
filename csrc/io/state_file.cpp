// Trained state at one watermark: the metadata, the two planes of a BF16T8 tensor, and the checksums.
#include "io/state_file.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <cstdio>
#include <set>

#include "base/error.h"
#include "io/crc32c.h"
#include "io/json.h"

namespace smezo {
namespace {

static_assert(std::endian::native == std::endian::little, "values are mapped as they lie in the file");

const std::string tail_suffix = ".tail";
const std::set<std::string> own_keys = {"format",    "format_version", "method", "base_fingerprint",
                                        "watermark", "journal_tail",   "packed", "crc32c"};

const char* format_of(StateKind kind) {
  return kind == StateKind::delta ? "smezo-delta" : "smezo-generation";
}

constexpr int64_t kVerifyBytes = int64_t{8} << 20;

const char* plane_of(DType d) {
  switch (d) {
    case DType::F32:
      return "F32";
    case DType::BF16:
    case DType::BF16T8:
      return "BF16";
    case DType::F16:
    case DType::NF4:
    case DType::I8:
      break;
  }
  fail<ArgumentError>("state",
                      std::string("trained values in ") + dtype_name(d) + ", expected F32, BF16 or BF16T8");
}

std::string hex8(uint32_t v) {
  char text[9];
  std::snprintf(text, sizeof text, "%08x", v);
  return text;
}

[[noreturn]] void bad(const std::string& path, const std::string& what) {
  fail<FormatError>("state", "'" + path + "': " + what);
}

uint32_t number_of(const std::string& text, int base, const std::string& path, const std::string& key) {
  uint32_t v = 0;
  const auto r = std::from_chars(text.data(), text.data() + text.size(), v, base);
  if (text.empty() || r.ec != std::errc() || r.ptr != text.data() + text.size())
    bad(path, "metadata '" + key + "' is '" + text + "', expected a " +
                  (base == 16 ? "hexadecimal" : "decimal") + " number; damaged?");
  return v;
}

std::map<std::string, std::string> metadata_of(StateKind kind, const StateHeader& h,
                                               const std::vector<StateTensor>& tensors, size_t n_entries) {
  std::map<std::string, std::string> m = h.extra;
  for (const auto& key : own_keys)
    check<ArgumentError>(m.count(key) == 0, "state", "extra metadata '" + key + "' has a reserved name");
  Json packed = Json::array();
  for (const auto& t : tensors)
    if (t.packed) packed.push(t.name);
  m["format"] = format_of(kind);
  m["format_version"] = "1";
  m["method"] = h.method_json;
  m["base_fingerprint"] = h.base_fingerprint;
  m["watermark"] = std::to_string(h.watermark);
  m["journal_tail"] = hex8(h.journal_tail);
  m["packed"] = packed.dump();
  m["crc32c"] = std::string(8 * n_entries, '0');
  return m;
}

const std::string& need(const std::map<std::string, std::string>& m, const char* key,
                        const std::string& path) {
  const auto at = m.find(key);
  if (at == m.end()) bad(path, std::string("no metadata '") + key + "', expected it; not a file of pysmezo?");
  return at->second;
}

bool ends_with_tail(const std::string& name) {
  return name.size() > tail_suffix.size() &&
         name.compare(name.size() - tail_suffix.size(), tail_suffix.size(), tail_suffix) == 0;
}

}  // namespace

int64_t StateTensor::n() const {
  int64_t n = 1;
  for (const int64_t d : shape) n *= d;
  return n;
}

void StateSink::write(size_t tensor, const void* values, const int8_t* tail, int64_t n) {
  check<ArgumentError>(tensor < tensors_->size(), "state",
                       "values for tensor number " + std::to_string(tensor));
  const StateTensor& t = (*tensors_)[tensor];
  check<ArgumentError>((t.dtype == DType::BF16T8) == (tail != nullptr), "state",
                       "tensor '" + t.name + "': a tail goes with BF16T8, and only with it");
  const int64_t n_bytes = n * plane_element_bytes(t.dtype);
  const size_t at = values_at_[tensor];
  to_->write(at, values, n_bytes);
  crc_[at] = crc32c(values, n_bytes, crc_[at]);
  if (!tail) return;
  to_->write(tail_at_[tensor], tail, n);
  crc_[tail_at_[tensor]] = crc32c(tail, n, crc_[tail_at_[tensor]]);
}

void write_state(const std::string& path, StateKind kind, const StateHeader& header,
                 const std::vector<StateTensor>& tensors, const std::function<void(StateSink&)>& fill) {
  StateSink sink;
  sink.tensors_ = &tensors;
  std::vector<TensorSpec> entries;
  for (const auto& t : tensors) {
    check<ArgumentError>(!ends_with_tail(t.name), "state",
                         "tensor '" + t.name + "' has a name that ends in .tail, which is reserved");
    check<ArgumentError>(!t.packed || t.shape.size() == 1, "state",
                         "packed tensor '" + t.name + "' has more than one dimension");
    sink.values_at_.push_back(entries.size());
    entries.push_back({t.name, plane_of(t.dtype), t.shape});
    sink.tail_at_.push_back(entries.size());
    if (t.dtype == DType::BF16T8) entries.push_back({t.name + tail_suffix, "I8", t.shape});
  }
  sink.crc_.resize(entries.size());
  write_safetensors(path, entries, metadata_of(kind, header, tensors, entries.size()),
                    [&](SafetensorsSink& to) {
                      sink.to_ = &to;
                      fill(sink);
                      std::string sums;
                      for (const size_t i : to.order()) sums += hex8(sink.crc_[i]);
                      to.replace_metadata("crc32c", sums);
                    });
}

StateReader StateReader::open(const std::string& path, StateKind kind) {
  if (folder_exists(path)) bad(path, "a folder, expected a file");
  StateReader r(Safetensors::open(path));
  const auto& m = r.file_.metadata();
  const std::string& format = need(m, "format", path);
  if (format != format_of(kind))
    bad(path, "format '" + format + "', expected '" + format_of(kind) + "'; another kind of file?");
  const std::string& version = need(m, "format_version", path);
  if (version != "1")
    bad(path, "format version '" + version + "', expected '1'; written by another release?");
  r.header_.method_json = need(m, "method", path);
  r.header_.base_fingerprint = need(m, "base_fingerprint", path);
  r.header_.watermark = number_of(need(m, "watermark", path), 10, path, "watermark");
  r.header_.journal_tail = number_of(need(m, "journal_tail", path), 16, path, "journal_tail");
  for (const auto& [key, value] : m)
    if (!own_keys.count(key)) r.header_.extra[key] = value;

  std::set<std::string> packed;
  const std::string packed_what = "'" + path + "': metadata packed";
  const Json packed_json = Json::parse(need(m, "packed", path), packed_what, 2);
  for (const auto& name : packed_json.as_array(packed_what)) packed.insert(name.as_string(packed_what));

  // The checksums stand in the order of the data.
  const auto& entries = r.file_.tensors();
  std::vector<const TensorEntry*> by_offset;
  for (const auto& t : entries) by_offset.push_back(&t);
  std::sort(by_offset.begin(), by_offset.end(), [](const TensorEntry* a, const TensorEntry* b) {
    return std::pair(a->offset, a->n_bytes) < std::pair(b->offset, b->n_bytes);
  });
  const std::string& sums = need(m, "crc32c", path);
  if (sums.size() != 8 * entries.size())
    bad(path, std::to_string(sums.size()) + " hex digits of checksums, expected " +
                  std::to_string(8 * entries.size()) + "; damaged?");
  std::map<std::string, uint32_t> sum;
  for (size_t i = 0; i < by_offset.size(); ++i)
    sum[by_offset[i]->name] = number_of(sums.substr(8 * i, 8), 16, path, "crc32c");

  for (const auto& e : entries) {
    if (ends_with_tail(e.name)) {
      const TensorEntry* of = r.file_.find(e.name.substr(0, e.name.size() - tail_suffix.size()));
      if (!of || of->dtype != "BF16" || e.dtype != "I8" || of->shape != e.shape)
        bad(path, "entry '" + e.name + "', expected I8 beside a BF16 tensor of its shape; damaged?");
      continue;
    }
    const TensorEntry* tail = r.file_.find(e.name + tail_suffix);
    if (e.dtype != "F32" && e.dtype != "BF16")
      bad(path, "tensor '" + e.name + "' is " + e.dtype + ", expected F32 or BF16; damaged?");
    if (e.offset % (e.dtype == "F32" ? 4 : 2))
      bad(path, "tensor '" + e.name + "' is not aligned to its element; rewritten by another program?");
    StateTensor t{e.name,
                  e.dtype == "F32" ? DType::F32
                  : tail           ? DType::BF16T8
                                   : DType::BF16,
                  e.shape, packed.erase(e.name) > 0};
    if (t.packed && t.shape.size() != 1)
      bad(path, "packed tensor '" + e.name + "' has more than one dimension; damaged?");
    r.tensors_.push_back(std::move(t));
    r.values_.push_back(e);
    r.tails_.push_back(tail ? *tail : TensorEntry{});
    r.values_crc_.push_back(sum[e.name]);
    r.tails_crc_.push_back(tail ? sum[tail->name] : 0);
  }
  if (!packed.empty())
    bad(path, "'" + *packed.begin() + "' is listed as packed but is no tensor of the file; damaged?");
  return r;
}

int64_t StateReader::find(const std::string& name) const {
  const auto at = std::lower_bound(tensors_.begin(), tensors_.end(), name,
                                   [](const StateTensor& t, const std::string& n) { return t.name < n; });
  return at != tensors_.end() && at->name == name ? at - tensors_.begin() : -1;
}

const void* StateReader::values(size_t tensor) const { return file_.data(values_[tensor]); }

const int8_t* StateReader::tail(size_t tensor) const {
  return tensors_[tensor].dtype == DType::BF16T8 ? reinterpret_cast<const int8_t*>(file_.data(tails_[tensor]))
                                                 : nullptr;
}

std::string StateReader::identity() const {
  uint32_t content = header_.watermark;
  for (const auto* sums : {&values_crc_, &tails_crc_})
    content = crc32c(sums->data(), static_cast<int64_t>(sums->size() * sizeof(uint32_t)), content);
  const std::string& made_by = header_.method_json;
  return hex8(crc32c(made_by.data(), static_cast<int64_t>(made_by.size()))) + hex8(content);
}

void StateReader::verify(size_t tensor) const {
  const auto prove = [&](const TensorEntry& e, uint32_t expected) {
    uint32_t found = 0;
    // Pages leave this process behind the reading: a generation may be larger than memory.
    for (int64_t at = 0; at < e.n_bytes; at += kVerifyBytes) {
      const int64_t n = std::min(kVerifyBytes, e.n_bytes - at);
      found = crc32c(file_.data(e) + at, n, found);
      file_.dont_need(e, at, n);
    }
    if (found != expected)
      bad(file_.shard_path(0),
          "tensor '" + e.name + "' has checksum " + hex8(found) + ", expected " + hex8(expected) +
              "; its bytes changed after they were written (a bad disk, or an interrupted copy)");
  };
  prove(values_[tensor], values_crc_[tensor]);
  if (tensors_[tensor].dtype == DType::BF16T8) prove(tails_[tensor], tails_crc_[tensor]);
}

void StateReader::release(size_t tensor) const {
  file_.dont_need(values_[tensor], 0, values_[tensor].n_bytes);
  if (tensors_[tensor].dtype == DType::BF16T8) file_.dont_need(tails_[tensor], 0, tails_[tensor].n_bytes);
}

void StateReader::verify_all() const {
  for (size_t i = 0; i < tensors_.size(); ++i) verify(i);
}

}  // namespace smezo
