// Reading: one pass over the sorted header proves bounds, no overlap and no hole; after it nothing needs a
// check.
#include "io/safetensors.h"

#include <algorithm>
#include <array>
#include <set>
#include <string_view>

#include "base/error.h"
#include "io/json.h"

namespace smezo {
namespace {

constexpr int64_t max_header_bytes = 100'000'000;  // the limit of the reference reader

struct DtypeRow {
  const char* name;
  int bits;
};
constexpr std::array<DtypeRow, 22> dtypes = {
    {{"BOOL", 8},        {"U8", 8},          {"I8", 8},    {"F8_E4M3", 8}, {"F8_E5M2", 8}, {"F8_E8M0", 8},
     {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"F4", 4},    {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"I16", 16},
     {"U16", 16},        {"F16", 16},        {"BF16", 16}, {"I32", 32},    {"U32", 32},    {"F32", 32},
     {"I64", 64},        {"U64", 64},        {"F64", 64},  {"C64", 64}}};

[[noreturn]] void bad(const std::string& path, const std::string& what) {
  fail<FormatError>("safetensors", "'" + path + "': " + what);
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string s = "[";
  for (size_t i = 0; i < shape.size(); ++i) s += (i ? ", " : "") + std::to_string(shape[i]);
  return s + "]";
}

int64_t read_length(const File& file) {
  const int64_t size = file.size();
  if (size < 8)
    bad(file.path(), std::to_string(size) +
                         " bytes, expected at least 8 for the header's length; an interrupted download?");
  uint8_t b[8];
  file.read(b, 8, 0);
  uint64_t n = 0;
  for (int i = 7; i >= 0; --i) n = n << 8 | b[i];
  if (n > static_cast<uint64_t>(max_header_bytes))
    bad(file.path(), "a header of " + std::to_string(n) + " bytes, expected at most " +
                         std::to_string(max_header_bytes) +
                         "; not a safetensors file (a git-lfs pointer, a pickle)?");
  if (static_cast<int64_t>(n) > size - 8)
    bad(file.path(), "a header of " + std::to_string(n) + " bytes in a file of " + std::to_string(size) +
                         ", expected it inside the file; an interrupted download?");
  return static_cast<int64_t>(n);
}

// Sizes in bits are checked too: a shape of 2^62 elements of 4 bytes must not wrap around to something that
// fits.
void derive_size(TensorEntry* t, const std::string& path, const std::string& who) {
  const int bits = safetensors_dtype_bits(t->dtype);
  if (bits == 0) bad(path, who + " has dtype '" + t->dtype + "', expected one of the table; a newer format?");
  int64_t n = 1, total_bits = 0;
  bool overflow = false;
  for (const int64_t d : t->shape) overflow |= __builtin_mul_overflow(n, d, &n);
  overflow |= __builtin_mul_overflow(n, static_cast<int64_t>(bits), &total_bits);
  if (overflow)
    bad(path,
        who + " has shape " + shape_text(t->shape) + ", whose size overflows 64 bits; a damaged header");
  if (total_bits % 8)
    bad(path, who + " has " + std::to_string(total_bits) + " bits, expected whole bytes; a damaged header");
  t->n = n;
  t->n_bytes = total_bits / 8;
}

TensorEntry parse_entry(const std::string& name, const Json& json, const std::string& path) {
  const std::string who = "tensor '" + name + "'", in = "'" + path + "': " + who;
  TensorEntry t;
  t.name = name;
  for (const auto& m : json.as_object(in))
    if (m.first != "dtype" && m.first != "shape" && m.first != "data_offsets")
      bad(path,
          who + " has a key '" + m.first + "', expected dtype, shape and data_offsets only; a newer format?");
  t.dtype = json.at("dtype", in).as_string(in + " dtype");
  for (const auto& d : json.at("shape", in).as_array(in + " shape")) {
    t.shape.push_back(d.as_int(in + " shape"));
    if (t.shape.back() < 0)
      bad(path,
          who + " has shape " + shape_text(t.shape) + ", expected no negative length; a damaged header");
  }
  derive_size(&t, path, who);
  const auto& offsets = json.at("data_offsets", in).as_array(in + " data_offsets");
  if (offsets.size() != 2)
    bad(path, who + " has " + std::to_string(offsets.size()) + " data_offsets, expected 2; a damaged header");
  t.offset = offsets[0].as_int(in + " data_offsets");
  const int64_t end = offsets[1].as_int(in + " data_offsets");
  if (t.offset < 0 || end < t.offset)
    bad(path, who + " lies at " + std::to_string(t.offset) + " to " + std::to_string(end) +
                  ", expected 0 <= begin <= end; a damaged header");
  if (end - t.offset != t.n_bytes)
    bad(path, who + " takes " + std::to_string(end - t.offset) + " bytes, expected " +
                  std::to_string(t.n_bytes) + " for " + t.dtype + " " + shape_text(t.shape) +
                  "; a damaged header");
  return t;
}

// Offsets become absolute. Proves: each tensor begins where the last one ended, and the last one ends with
// the file.
void check_layout(std::vector<TensorEntry>* tensors, const std::string& path, int64_t data_begin,
                  int64_t file_bytes) {
  std::sort(tensors->begin(), tensors->end(), [](const TensorEntry& a, const TensorEntry& b) {
    return std::pair(a.offset, a.n_bytes) < std::pair(b.offset, b.n_bytes);
  });
  int64_t end = 0;
  for (auto& t : *tensors) {
    if (t.offset != end)
      bad(path, "tensor '" + t.name + "' begins at byte " + std::to_string(t.offset) +
                    " of the data, expected " + std::to_string(end) +
                    (t.offset > end ? ": a hole before it" : ": it overlaps the one before") +
                    "; a damaged or crafted header");
    end = t.offset + t.n_bytes;  // cannot overflow: it was read as an int64 above
    t.offset += data_begin;
  }
  const int64_t found = file_bytes - data_begin;
  if (found < end)
    fail<IoError>("safetensors", "'" + path + "' is truncated: " + std::to_string(file_bytes) +
                                     " bytes, expected " + std::to_string(data_begin) + " + " +
                                     std::to_string(end) + "; an interrupted download?");
  if (found > end)
    bad(path, std::to_string(found - end) + " bytes after the last tensor, expected none; a damaged file");
}

std::map<std::string, std::string> parse_metadata(const Json& json, const std::string& path) {
  std::map<std::string, std::string> out;
  const std::string what = "'" + path + "': __metadata__";
  for (const auto& [key, value] : json.as_object(what)) out[key] = value.as_string(what + " " + key);
  return out;
}

// A shard's name comes from a file somebody sent: it may not lead out of the folder.
void check_shard_name(const std::string& name, const std::string& index) {
  const std::string_view end = ".safetensors";
  const bool inside = name.find('/') == std::string::npos && name.find('\\') == std::string::npos &&
                      name.find('\0') == std::string::npos && name.find("..") == std::string::npos &&
                      !name.empty() && name[0] != '.';
  if (!inside)
    bad(index,
        "shard " + Json(name).dump() + ", expected a plain file name in the same folder; a crafted index?");
  if (name.size() <= end.size() || name.substr(name.size() - end.size()) != end)
    bad(index, "shard " + Json(name).dump() + ", expected a name ending in .safetensors");
}

}  // namespace

int safetensors_dtype_bits(const std::string& dtype) {
  for (const auto& row : dtypes)
    if (dtype == row.name) return row.bits;
  return 0;
}

void Safetensors::add_shard(const std::string& path) {
  Shard shard{File::open(path, Open::read), {}, {}};
  const int64_t n = read_length(shard.file);
  std::string text(static_cast<size_t>(n), '\0');
  shard.file.read(text.data(), n, 8);
  if (n == 0 || text[0] != '{')
    bad(path, "the header does not begin with '{', expected a JSON object; not a safetensors file?");
  const Json header = Json::parse(text, "the header of '" + path + "'", 16);
  std::vector<TensorEntry> mine;
  for (const auto& [name, value] : header.as_object(path)) {
    if (name == "__metadata__")
      shard.metadata = parse_metadata(value, path);
    else
      mine.push_back(parse_entry(name, value, path));
  }
  check_layout(&mine, path, 8 + n, shard.file.size());
  shard.map = Map(shard.file);
  for (auto& t : mine) {
    t.shard = n_shards();
    tensors_.push_back(std::move(t));
  }
  shards_.push_back(std::move(shard));
}

void Safetensors::sort_and_check_names() {
  const auto by_name = [](const TensorEntry& a, const TensorEntry& b) { return a.name < b.name; };
  std::sort(tensors_.begin(), tensors_.end(), by_name);
  for (size_t i = 1; i < tensors_.size(); ++i)
    if (tensors_[i].name == tensors_[i - 1].name)
      bad(path_, "tensor '" + tensors_[i].name +
                     "' is in two shards, expected one; shards of two checkpoints mixed?");
}

Safetensors Safetensors::open(const std::string& path) {
  Safetensors s;
  s.path_ = path;
  const std::string single = join(path, "model.safetensors"),
                    index_path = join(path, "model.safetensors.index.json");
  if (!folder_exists(path) || file_exists(single)) {
    s.add_shard(folder_exists(path) ? single : path);
    s.sort_and_check_names();
    return s;
  }
  if (!file_exists(index_path))
    fail<IoError>("safetensors",
                  "'" + path +
                      "' has neither model.safetensors nor model.safetensors.index.json, expected one; "
                      "not a Hugging Face model folder, or its weights are in another format?");
  const Json index = Json::parse(read_all(index_path), "'" + index_path + "'", 16);
  const auto& map = index.at("weight_map", index_path).as_object("'" + index_path + "': weight_map");
  std::set<std::string> names;
  for (const auto& [tensor, shard] : map) {
    check_shard_name(shard.as_string("'" + index_path + "': " + tensor), index_path);
    names.insert(shard.as_string(""));
  }
  if (names.empty()) bad(index_path, "an empty weight_map, expected tensors");
  const std::vector<std::string> order(names.begin(), names.end());
  for (const auto& name : order) {
    if (!file_exists(join(path, name)))
      fail<IoError>("safetensors", "shard '" + join(path, name) + "' is missing, expected " +
                                       std::to_string(order.size()) + " shards; an interrupted download?");
  }
  for (const auto& name : order) s.add_shard(join(path, name));
  s.sort_and_check_names();
  for (const auto& [tensor, shard] : map) {
    const TensorEntry* t = s.find(tensor);
    if (!t || order[t->shard] != shard.as_string(""))
      bad(index_path, "tensor '" + tensor + "' is " + (t ? "in '" + order[t->shard] + "'" : "in no shard") +
                          ", expected in '" + shard.as_string("") +
                          "'; shards and index of two checkpoints mixed?");
  }
  // Every name of the map was found and no name occurs twice, so a larger number means tensors that the map
  // does not list.
  if (s.tensors_.size() != map.size())
    bad(index_path, std::to_string(map.size()) + " tensors listed, but the shards hold " +
                        std::to_string(s.tensors_.size()) + "; shards and index of two checkpoints mixed?");
  return s;
}

const TensorEntry* Safetensors::find(const std::string& name) const {
  const auto at = std::lower_bound(tensors_.begin(), tensors_.end(), name,
                                   [](const TensorEntry& t, const std::string& n) { return t.name < n; });
  return at != tensors_.end() && at->name == name ? &*at : nullptr;
}

const TensorEntry& Safetensors::at(const std::string& name) const {
  const TensorEntry* t = find(name);
  if (!t)
    bad(path_, "no tensor '" + name + "' among " + std::to_string(tensors_.size()) +
                   ", expected one; another model?");
  return *t;
}

void Safetensors::read(const TensorEntry& t, int64_t first_byte, int64_t n_bytes, void* to) const {
  check<ArgumentError>(
      first_byte >= 0 && n_bytes >= 0 && first_byte <= t.n_bytes && n_bytes <= t.n_bytes - first_byte,
      "safetensors", "a read outside tensor '" + t.name + "'");
  shards_[t.shard].file.read(to, n_bytes, t.offset + first_byte);
}

void Safetensors::dont_need(const TensorEntry& t, int64_t first_byte, int64_t n_bytes) const {
  shards_[t.shard].map.dont_need(t.offset + first_byte, n_bytes);
}

}  // namespace smezo
