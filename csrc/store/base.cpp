#include "store/base.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/error.h"
#include "format/nf4.h"
#include "io/json.h"
#include "store/content_hash.h"

namespace smezo {
namespace {

const std::string kNf4State = ".quant_state.bitsandbytes__nf4", kFp4State = ".quant_state.bitsandbytes__fp4";

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string out = "[";
  for (const int64_t n : shape) out += (out.size() > 1 ? ", " : "") + std::to_string(n);
  return out + "]";
}

bool ends_with(const std::string& name, const std::string& end) {
  return name.size() >= end.size() && name.compare(name.size() - end.size(), end.size(), end) == 0;
}

// Old checkpoints store these; they are computed here.
bool is_known_buffer(const std::string& name) { return ends_with(name, "rotary_emb.inv_freq"); }

// SCB and weight_format stand beside `weight`, not under it.
std::string int8_sibling(const std::string& weight, const char* what) {
  return ends_with(weight, ".weight") ? weight.substr(0, weight.size() - 6) + what : "";
}

// Names of what belongs to a quantized tensor.
bool is_companion_of(const std::string& name, const std::string& tensor) {
  if (name.size() > tensor.size() && name.compare(0, tensor.size(), tensor) == 0 &&
      name[tensor.size()] == '.')
    return true;
  return name == int8_sibling(tensor, "SCB") || name == int8_sibling(tensor, "weight_format");
}

}  // namespace

int64_t BaseTensor::row_multiple() const {
  if (dtype != DType::NF4) return 1;
  return scales.block / std::gcd<int64_t>(scales.block, cols);
}

BaseTensor::Range BaseTensor::data_range(int64_t row0, int64_t n) const {
  const int64_t begin = bytes_of(dtype, row0 * cols);
  return {begin, bytes_of(dtype, (row0 + n) * cols) - begin};
}

BaseTensor::Range BaseTensor::absmax_range(int64_t row0, int64_t n) const {
  if (absmax == nullptr) return {0, 0};
  const int64_t size = absmax_align();
  const int64_t first = row0 * cols / scales.block;
  const int64_t end = ((row0 + n) * cols + scales.block - 1) / scales.block;
  return {first * size, (end - first) * size};
}

int64_t BaseTensor::absmax_align() const { return absmax != nullptr && absmax->dtype == "F32" ? 4 : 1; }

WeightView BaseTensor::view(uint32_t id, int64_t row0, const uint8_t* data_at,
                            const uint8_t* absmax_at) const {
  WeightView v;
  // Never written through: the view says so, and where the base is mapped the map is read-only (I2).
  v.data = const_cast<uint8_t*>(data_at);
  v.dtype = dtype;
  v.rows = rows, v.cols = cols;
  v.first = row0 * cols;
  v.tensor_id = id;
  v.scales = scales;
  if (dtype == DType::NF4) {
    if (absmax->dtype == "U8") {
      v.scales.absmax8 = absmax_at;
    } else {
      v.scales.absmax = reinterpret_cast<const float*>(absmax_at);
    }
  }
  return v;
}

Base::Base(const std::string& folder, const std::vector<TensorRequest>& requests)
    : file_(Safetensors::open(folder)) {
  check_names(requests);
  tensors_.reserve(requests.size());
  named(file_.n_shards() == 1 ? file_.shard_path(0) : folder, [&] {
    for (const TensorRequest& r : requests) find(r);
  });
  const std::string kept = join(folder, kKeptFile);
  if (file_exists(kept)) originals_.emplace(kept);
  check_originals();
}

void Base::check_originals() const {
  if (!originals_) return;
  for (const std::string& name : originals_->names()) {
    const auto at = std::lower_bound(names_.begin(), names_.end(), name);
    const bool here = at != names_.end() && *at == name;
    const DType dtype = here ? tensors_[static_cast<size_t>(at - names_.begin())].dtype : DType::F32;
    check<FormatError>(here && (dtype == DType::NF4 || dtype == DType::I8), "kept originals",
                       originals_->path() + " holds values of '" + name + "', which is " +
                           (here ? std::string(dtype_name(dtype)) : "not there") +
                           " in the model beside it, expected quantized weights; another model's file?");
  }
}

// A head stored beside a tied embedding is a copy that transformers ignores too; nobody asks for it when the
// config says tied.
void Base::check_names(const std::vector<TensorRequest>& requests) const {
  const bool has_head =
      std::any_of(requests.begin(), requests.end(), [](const auto& r) { return r.name == "lm_head.weight"; });
  std::vector<std::string> asked;
  for (const TensorRequest& r : requests) asked.push_back(r.name);
  check<ArgumentError>(std::is_sorted(asked.begin(), asked.end()), "store",
                       "requests are not in byte order of their names, which is the order of tensor ids");
  for (const TensorEntry& t : file_.tensors()) {
    if (std::binary_search(asked.begin(), asked.end(), t.name) || is_known_buffer(t.name)) continue;
    if (t.name == "lm_head.weight" && !has_head) continue;
    const bool companion = std::any_of(
        asked.begin(), asked.end(), [&](const std::string& name) { return is_companion_of(t.name, name); });
    if (companion) continue;
    fail<FormatError>("store",
                      "tensor '" + t.name + "' " + shape_text(t.shape) + " in " + file_.shard_path(t.shard) +
                          " is not one of the model config.json describes; is it another model's weights?");
  }
}

void Base::find(const TensorRequest& r) {
  BaseTensor out;
  out.rows = r.rows, out.cols = r.cols;
  const TensorEntry* t = out.data = file_.find(r.name);
  check<FormatError>(t != nullptr, "store",
                     "tensor '" + r.name + "' is missing from " + file_.shard_path(0) +
                         (file_.n_shards() > 1 ? " and its other shards" : "") +
                         ", expected by config.json; is a shard or an older layer name the cause?");
  check<FormatError>(file_.find(r.name + kFp4State) == nullptr, "store",
                     "tensor '" + r.name + "' is FP4, expected NF4; quantize the original again");
  if (const TensorEntry* state = file_.find(r.name + kNf4State)) {
    find_nf4(r, *state, out);
  } else {
    const std::vector<int64_t> shape = r.rows == 1 && t->shape.size() == 1
                                           ? std::vector<int64_t>{r.cols}
                                           : std::vector<int64_t>{r.rows, r.cols};
    check<FormatError>(t->shape == shape, "store",
                       "tensor '" + r.name + "' has shape " + shape_text(t->shape) + ", expected " +
                           shape_text(shape) + " by config.json");
    if (t->dtype == "I8") {
      find_int8(r, out);
    } else {
      const bool known = t->dtype == "F32" || t->dtype == "F16" || t->dtype == "BF16";
      check<FormatError>(known, "store",
                         "tensor '" + r.name + "' has dtype " + t->dtype +
                             ", expected F32, F16, BF16, or NF4 or int8 as bitsandbytes writes them");
      out.dtype = dtype_from_name(t->dtype);
    }
  }
  names_.push_back(r.name);
  tensors_.push_back(std::move(out));
  // The vector's memory stays where it is when a BaseTensor moves, so `scales` stays good.
}

std::vector<float> Base::floats(const TensorEntry& t) const {
  check<FormatError>(
      t.dtype == "F32", "store",
      "tensor '" + t.name + "' has dtype " + t.dtype + ", expected F32 as bitsandbytes writes it");
  std::vector<float> out(static_cast<size_t>(t.n));
  file_.read(t, 0, t.n_bytes, out.data());
  return out;
}

void Base::find_nf4(const TensorRequest& r, const TensorEntry& state, BaseTensor& out) const {
  const std::string where = "tensor '" + r.name + "'";
  out.dtype = DType::NF4;
  std::string text(static_cast<size_t>(state.n_bytes), '\0');
  file_.read(state, 0, state.n_bytes, text.data());
  const std::string what = "quant_state of " + r.name;
  const Json json = Json::parse(text, what);
  std::vector<int64_t> shape;
  for (const Json& n : json.at("shape", what).as_array(what)) shape.push_back(n.as_int(what));
  check<FormatError>(shape == std::vector<int64_t>({r.rows, r.cols}), "store",
                     where + " has quantized shape " + shape_text(shape) + ", expected " +
                         shape_text({r.rows, r.cols}) + " by config.json");
  const int64_t block = json.at("blocksize", what).as_int(what), n = r.rows * r.cols;
  check<FormatError>(block >= 32 && block <= 4096 && std::has_single_bit(static_cast<uint64_t>(block)),
                     "store",
                     where + " has blocksize " + std::to_string(block) +
                         ", expected a power of two from 32 to 4096, as bitsandbytes writes");
  out.scales.block = static_cast<int32_t>(block);
  // The storage type of the packed bytes may be any (FSDP writes bf16): only their number counts.
  check<FormatError>(out.data->n_bytes == bytes_of(DType::NF4, n), "store",
                     where + " has " + std::to_string(out.data->n_bytes) + " packed bytes, expected " +
                         std::to_string(bytes_of(DType::NF4, n)));
  const std::vector<float> map = floats(file_.at(r.name + ".quant_map"));
  bool same = map.size() == 16;
  for (uint32_t i = 0; same && i < 16; ++i) same = map[i] == nf4_value(i);
  check<FormatError>(same, "store",
                     where + " has another quant_map than NF4's, expected the published table");
  out.absmax = &file_.at(r.name + ".absmax");
  const int64_t n_blocks = (n + block - 1) / block;
  const bool nested = json.find("nested_blocksize") != nullptr;
  check<FormatError>(out.absmax->n == n_blocks && out.absmax->dtype == (nested ? "U8" : "F32"), "store",
                     "'" + out.absmax->name + "' is " + out.absmax->dtype + " " +
                         shape_text(out.absmax->shape) + ", expected " + (nested ? "U8" : "F32") + " [" +
                         std::to_string(n_blocks) + "]");
  if (!nested) return;
  const int64_t nested_block = json.at("nested_blocksize", what).as_int(what);
  out.fixed = floats(file_.at(r.name + ".nested_quant_map"));
  const std::vector<float> absmax = floats(file_.at(r.name + ".nested_absmax"));
  check<FormatError>(nested_block > 0 && nested_block <= INT32_MAX && out.fixed.size() == 256 &&
                         static_cast<int64_t>(absmax.size()) == (n_blocks + nested_block - 1) / nested_block,
                     "store", where + " has nested scales of unexpected sizes; is the file damaged?");
  out.fixed.insert(out.fixed.end(), absmax.begin(), absmax.end());
  out.scales.nested_block = static_cast<int32_t>(nested_block);
  const double offset = json.at("nested_offset", what).as_double(what);
  check<FormatError>(
      std::abs(offset) <= std::numeric_limits<float>::max(), "store",
      where + " has a nested_offset of " + std::to_string(offset) + ", expected an fp32 number");
  out.scales.nested_offset = static_cast<float>(offset);
  out.scales.nested_code = out.fixed.data();
  out.scales.nested_absmax = out.fixed.data() + 256;
}

void Base::find_int8(const TensorRequest& r, BaseTensor& out) const {
  const TensorEntry* scales = file_.find(int8_sibling(r.name, "SCB"));
  check<FormatError>(scales != nullptr && scales->n == r.rows, "store",
                     "tensor '" + r.name + "' is I8 without its " + std::to_string(r.rows) +
                         " row scales, expected 'SCB' beside it, as bitsandbytes writes");
  // Other layouts are tiled for a GPU: old versions wrote them.
  if (const TensorEntry* t = file_.find(int8_sibling(r.name, "weight_format"))) {
    uint8_t layout = 0;
    if (t->dtype == "U8" && t->n == 1) file_.read(*t, 0, 1, &layout);
    check<FormatError>(t->dtype == "U8" && t->n == 1 && layout == 0, "store",
                       "'" + t->name + "' is " + t->dtype + " " + shape_text(t->shape) + " with layout " +
                           std::to_string(layout) +
                           ", expected one U8 that is 0 (rows); save it again with a newer bitsandbytes");
  }
  out.dtype = DType::I8;
  out.fixed = floats(*scales);
  out.scales.absmax = out.fixed.data();
}

DType Base::dtype() const {
  std::array<int64_t, 8> n_of{};
  for (const BaseTensor& t : tensors_) {
    if (t.rows > 1) ++n_of[static_cast<size_t>(t.dtype)];
  }
  return static_cast<DType>(std::max_element(n_of.begin(), n_of.end()) - n_of.begin());
}

int64_t Base::scale_bytes() const {
  int64_t n = 0;
  for (const BaseTensor& t : tensors_) n += static_cast<int64_t>(t.fixed.size() * sizeof(float));
  return n;
}

uint64_t Base::hash(ThreadPool& pool, const std::function<const uint8_t*(const Chunk&, int)>& get,
                    const std::function<void(const Chunk&, const uint8_t*)>& done) const {
  std::vector<Chunk> chunks;
  for (uint32_t id = 0; id < tensors_.size(); ++id) {
    for (const TensorEntry* e : {tensors_[id].data, tensors_[id].absmax}) {
      if (e == nullptr) continue;
      for (int64_t at = 0; at < e->n_bytes; at += kHashChunkBytes)
        chunks.push_back({id, e, at, std::min(kHashChunkBytes, e->n_bytes - at)});
    }
  }
  std::vector<uint64_t> hashes(chunks.size());
  pool.run(static_cast<int64_t>(chunks.size()), [&](int64_t i, int thread) {
    const Chunk& c = chunks[static_cast<size_t>(i)];
    const uint8_t* const bytes = get(c, thread);
    hashes[static_cast<size_t>(i)] = hash_bytes(bytes, c.n_bytes);
    done(c, bytes);
  });
  const auto join_text = [](uint64_t h, const std::string& text) {
    return hash_join(h, hash_bytes(text.data(), static_cast<int64_t>(text.size())));
  };
  uint64_t h = content_hash::kStart;
  size_t next = 0;
  for (uint32_t id = 0; id < tensors_.size(); ++id) {
    const BaseTensor& t = tensors_[id];
    h = join_text(join_text(h, names_[id]), t.data->dtype);
    h = hash_join(hash_join(h, static_cast<uint64_t>(t.rows)), static_cast<uint64_t>(t.cols));
    for (; next < chunks.size() && chunks[next].id == id; ++next) h = hash_join(h, hashes[next]);
    if (!t.fixed.empty())
      h = hash_join(h, hash_bytes(t.fixed.data(), static_cast<int64_t>(t.fixed.size() * sizeof(float))));
    if (t.scales.block > 0) h = hash_join(h, static_cast<uint64_t>(t.scales.block));
    if (t.scales.nested_block > 0) {
      h = hash_join(h, static_cast<uint64_t>(t.scales.nested_block));
      h = hash_join(h, std::bit_cast<uint32_t>(t.scales.nested_offset));
    }
  }
  if (originals_) {
    check<FormatError>(hash_text(h) == originals_->base_fingerprint(), "kept originals",
                       originals_->path() + " belongs to weights of fingerprint " +
                           originals_->base_fingerprint() + ", those beside it have " + hash_text(h) +
                           "; copied from another folder, or the weights were replaced?");
    h = hash_join(h, originals_->prove());
  }
  return h;
}

uint64_t Base::hash(ThreadPool& pool) const {
  std::vector<std::vector<uint8_t>> buffers(static_cast<size_t>(pool.size()));
  return hash(
      pool,
      [&](const Chunk& c, int thread) {
        std::vector<uint8_t>& buffer = buffers[static_cast<size_t>(thread)];
        buffer.resize(static_cast<size_t>(kHashChunkBytes));
        file_.read(*c.entry, c.at, c.n_bytes, buffer.data());
        return buffer.data();
      },
      [](const Chunk&, const uint8_t*) {});
}

}  // namespace smezo
