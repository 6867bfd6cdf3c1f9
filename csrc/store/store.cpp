// The resident store. Fingerprint: for every tensor in id order, the hashes of its name and dtype, rows,
// cols, then the hash of each 1 MiB chunk of its bytes in order, all joined into one chain (content_hash.h);
// chunks are hashed in parallel, in the pass over the file that also makes the working copies, and their
// pages are dropped from this process behind it.
#include "store/store.h"

#include <algorithm>
#include <array>
#include <cstdlib>

#include "base/error.h"
#include "io/safetensors.h"
#include "store/content_hash.h"
#include "store/convert.h"

namespace smezo {
namespace {

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using Block = std::unique_ptr<void, Free>;

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string out = "[";
  for (const int64_t n : shape) out += (out.size() > 1 ? ", " : "") + std::to_string(n);
  return out + "]";
}

// Old checkpoints store these; they are computed here.
bool is_known_buffer(const std::string& name) {
  const std::string_view end = "rotary_emb.inv_freq";
  return name.size() >= end.size() && name.compare(name.size() - end.size(), end.size(), end) == 0;
}

class Resident final : public Store {
 public:
  Resident(const std::string& folder, std::vector<TensorRequest> requests)
      : requests_(std::move(requests)), file_(Safetensors::open(folder)) {}

  void check_names();
  void find_tensors();
  void load(DType values, ThreadPool& pool);

  int64_t n_tensors() const override { return static_cast<int64_t>(requests_.size()); }
  const TensorRequest& request(uint32_t id) const override { return requests_[id]; }
  WeightView weight(uint32_t id) override { return weights_[id]; }
  WeightView base_weight(uint32_t id) override { return base_[id]; }
  void base_values(uint32_t id, int64_t e0, int64_t n, float* out) override;
  void rest(uint32_t id) override {
    if (!memory_[id]) file_.dont_need(*entries_[id], 0, entries_[id]->n_bytes);
  }
  DType base_dtype() const override { return base_dtype_; }
  std::string fingerprint() override { return hash_text(fingerprint_); }
  int64_t working_copy_bytes() const override { return working_copy_bytes_; }

 private:
  void allocate(size_t id, DType dtype);
  bool lies_aligned(size_t id) const;

  std::vector<TensorRequest> requests_;
  Safetensors file_;
  std::vector<const TensorEntry*> entries_;
  std::vector<WeightView> base_, weights_;
  std::vector<Block> memory_;
  DType base_dtype_ = DType::F32, values_ = DType::F32;
  uint64_t fingerprint_ = 0;
  int64_t working_copy_bytes_ = 0;
};

// A head stored beside a tied embedding is a copy that transformers ignores too; nobody asks for it when the
// config says tied.
void Resident::check_names() {
  const bool has_head = std::any_of(requests_.begin(), requests_.end(),
                                    [](const auto& r) { return r.name == "lm_head.weight"; });
  std::vector<std::string> asked;
  for (const TensorRequest& r : requests_) asked.push_back(r.name);
  check<ArgumentError>(std::is_sorted(asked.begin(), asked.end()), "store",
                       "requests are not in byte order of their names, which is "
                       "the order of tensor ids");
  for (const TensorEntry& t : file_.tensors()) {
    if (std::binary_search(asked.begin(), asked.end(), t.name) || is_known_buffer(t.name)) continue;
    if (t.name == "lm_head.weight" && !has_head) continue;
    fail<FormatError>("store",
                      "tensor '" + t.name + "' " + shape_text(t.shape) + " in " + file_.shard_path(t.shard) +
                          " is not one of the model config.json describes; is it another model's weights?");
  }
}

void Resident::find_tensors() {
  std::array<int64_t, 4> n_of_dtype{};
  for (size_t id = 0; id < requests_.size(); ++id) {
    const TensorRequest& r = requests_[id];
    const TensorEntry* t = file_.find(r.name);
    check<FormatError>(t != nullptr, "store",
                       "tensor '" + r.name + "' is missing from " + file_.shard_path(0) +
                           (file_.n_shards() > 1 ? " and its other shards" : "") +
                           ", expected by config.json; is a shard or an older layer name the cause?");
    const std::vector<int64_t> shape = r.rows == 1 && t->shape.size() == 1
                                           ? std::vector<int64_t>{r.cols}
                                           : std::vector<int64_t>{r.rows, r.cols};
    check<FormatError>(t->shape == shape, "store",
                       "tensor '" + r.name + "' has shape " + shape_text(t->shape) + ", expected " +
                           shape_text(shape) + " by config.json");
    const bool known = t->dtype == "F32" || t->dtype == "F16" || t->dtype == "BF16";
    check<FormatError>(known, "store",
                       "tensor '" + r.name + "' has dtype " + t->dtype + ", expected F32, F16 or BF16");
    WeightView v;
    // Never written through: the view says so and the map is read-only (I2).
    v.data = const_cast<uint8_t*>(file_.data(*t));
    v.dtype = dtype_from_name(t->dtype);
    v.rows = r.rows, v.cols = r.cols;
    v.tensor_id = static_cast<uint32_t>(id);
    if (r.rows > 1) ++n_of_dtype[static_cast<size_t>(v.dtype)];
    entries_.push_back(t);
    base_.push_back(v);
  }
  base_dtype_ =
      static_cast<DType>(std::max_element(n_of_dtype.begin(), n_of_dtype.end()) - n_of_dtype.begin());
  weights_ = base_;
  memory_.resize(requests_.size());
}

bool Resident::lies_aligned(size_t id) const {
  return reinterpret_cast<uintptr_t>(base_[id].data) % static_cast<uintptr_t>(dtype_bytes(base_[id].dtype)) ==
         0;
}

void Resident::allocate(size_t id, DType dtype) {
  WeightView& w = weights_[id];
  const int64_t plane = (w.n() * (dtype == DType::F32 ? 4 : 2) + 63) / 64 * 64;
  const int64_t n_bytes = dtype == DType::BF16T8 ? plane + (w.n() + 63) / 64 * 64 : plane;
  memory_[id].reset(std::aligned_alloc(64, static_cast<size_t>(n_bytes)));
  check<BudgetError>(memory_[id] != nullptr, "store",
                     "no memory for the " + std::to_string(n_bytes) + " bytes of the working copy of '" +
                         requests_[id].name + "'");
  w.data = memory_[id].get();
  w.tail = dtype == DType::BF16T8 ? static_cast<int8_t*>(memory_[id].get()) + plane : nullptr;
  w.dtype = dtype;
  w.writable = requests_[id].trained;
  working_copy_bytes_ += n_bytes;
}

void Resident::load(DType values, ThreadPool& pool) {
  struct Chunk {
    size_t id;
    int64_t begin, n_bytes;
  };
  values_ = values;
  std::vector<Chunk> chunks;
  for (size_t id = 0; id < requests_.size(); ++id) {
    if (requests_[id].trained) {
      allocate(id, values);
    } else if (!lies_aligned(id)) {
      allocate(id, base_[id].dtype);
    }
    for (int64_t at = 0; at < entries_[id]->n_bytes; at += kHashChunkBytes)
      chunks.push_back({id, at, std::min(kHashChunkBytes, entries_[id]->n_bytes - at)});
  }
  std::vector<uint64_t> hashes(chunks.size());
  pool.run(static_cast<int64_t>(chunks.size()), [&](int64_t i, int) {
    const Chunk& c = chunks[static_cast<size_t>(i)];
    const uint8_t* const from = static_cast<const uint8_t*>(base_[c.id].data) + c.begin;
    hashes[static_cast<size_t>(i)] = hash_bytes(from, c.n_bytes);
    const int64_t size = dtype_bytes(base_[c.id].dtype);
    if (memory_[c.id]) convert(from, base_[c.id].dtype, c.n_bytes / size, weights_[c.id], c.begin / size);
    file_.dont_need(*entries_[c.id], c.begin, c.n_bytes);
  });
  fingerprint_ = content_hash::kStart;
  size_t next = 0;
  for (size_t id = 0; id < requests_.size(); ++id) {
    const std::string& name = requests_[id].name;
    const std::string& dtype = entries_[id]->dtype;
    fingerprint_ = hash_join(fingerprint_, hash_bytes(name.data(), static_cast<int64_t>(name.size())));
    fingerprint_ = hash_join(fingerprint_, hash_bytes(dtype.data(), static_cast<int64_t>(dtype.size())));
    fingerprint_ = hash_join(fingerprint_, static_cast<uint64_t>(requests_[id].rows));
    fingerprint_ = hash_join(fingerprint_, static_cast<uint64_t>(requests_[id].cols));
    for (; next < chunks.size() && chunks[next].id == id; ++next)
      fingerprint_ = hash_join(fingerprint_, hashes[next]);
  }
}

void Resident::base_values(uint32_t id, int64_t e0, int64_t n, float* out) {
  const WeightView& b = base_[id];
  read_as(static_cast<const uint8_t*>(b.data) + e0 * dtype_bytes(b.dtype), b.dtype, n, values_, out);
  // What is read here is read once (deltas, supports): it shall not stay resident beside the working copy.
  const TensorEntry& t = *entries_[id];
  file_.dont_need(t, e0 * dtype_bytes(b.dtype), n * dtype_bytes(b.dtype));
}

}  // namespace

std::unique_ptr<Store> Store::open(const std::string& folder, const std::vector<TensorRequest>& requests,
                                   DType values, ThreadPool& pool) {
  check<ArgumentError>(
      holds_trained(values), "store",
      std::string("working copies in ") + dtype_name(values) + ", expected F32, BF16 or BF16T8");
  auto out = std::make_unique<Resident>(folder, requests);
  out->check_names();
  out->find_tensors();
  out->load(values, pool);
  return out;
}

}  // namespace smezo
