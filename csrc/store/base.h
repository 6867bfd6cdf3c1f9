// The frozen checkpoint: what every tensor of a model is stored as, where its bytes lie, and the hash of all
// of it. Reads headers only, until `hash` is asked for.
//
// Quantized tensors are bitsandbytes' serialised layout. NF4: `X` U8 with two elements a byte, `X.absmax`
// F32, `X.quant_map` F32[16], `X.quant_state.bitsandbytes__nf4` (JSON in bytes); doubly quantized `X.absmax`
// U8 with `X.nested_absmax` and `X.nested_quant_map`. int8: `X` I8, `SCB` F32 beside it, `weight_format` U8.
#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/threads.h"
#include "base/view.h"
#include "io/safetensors.h"
#include "store/originals.h"

namespace smezo {

struct TensorRequest {
  std::string name;      // canonical Hugging Face name; its rank in the list is the tensor id
  int64_t rows, cols;    // expected; vectors are rows = 1
  bool trained = false;  // gets a working copy
  int64_t row_step = 1;  // units begin at multiples of it
  // What an update rule keeps beside the working copy: n_moments arrays of so many fp32 a row.
  int n_moments = 0;
  int64_t moments_a_row = 0;
  float first_moment = 0;  // what they are at first
  int64_t moment_bytes(int64_t n_rows) const {
    return n_rows * moments_a_row * static_cast<int64_t>(sizeof(float));  // of one
  }
};

struct BaseTensor {
  const TensorEntry* data = nullptr;
  const TensorEntry* absmax = nullptr;  // NF4: what goes by block
  DType dtype = DType::F32;
  int64_t rows = 0, cols = 0;
  std::vector<float> fixed;  // what `scales` points to that is the same for every row range
  Scales scales;             // without absmax and absmax8 of NF4

  // Rows that may begin a view: whole blocks and whole bytes come before them.
  int64_t row_multiple() const;
  // Bytes of rows [row0, row0 + n) within `data` and `absmax`.
  struct Range {
    int64_t begin, n_bytes;
  };
  Range data_range(int64_t row0, int64_t n) const;
  Range absmax_range(int64_t row0, int64_t n) const;  // empty where there is none
  // What their addresses in memory must be multiples of; in a file they lie anywhere.
  int64_t data_align() const { return dtype == DType::NF4 ? 1 : dtype_bytes(dtype); }
  int64_t absmax_align() const;
  // The view of rows [row0, row0 + n) whose bytes are at these places.
  WeightView view(uint32_t id, int64_t row0, const uint8_t* data_at, const uint8_t* absmax_at) const;
};

class Base {
 public:
  // Opens <folder>/model.safetensors or its sharded index. `requests` in tensor-id order. FormatError: a
  // tensor is missing, has another shape, or a dtype that is not F32, F16, BF16, NF4 or int8 as above.
  // Tensors nobody asked for are ignored when they are known buffers (rotary inv_freq), else FormatError; so
  // is a kept file (originals.h) of what is not quantized here.
  Base(const std::string& folder, const std::vector<TensorRequest>& requests);

  const Safetensors& file() const { return file_; }
  const BaseTensor& tensor(uint32_t id) const { return tensors_[id]; }
  DType dtype() const;          // the most common dtype of the matrices
  int64_t scale_bytes() const;  // held in memory, see BaseTensor::fixed
  const Originals* originals() const {
    return originals_ ? &*originals_ : nullptr;
  }  // nullptr: the folder has none

  // A piece of a tensor's data or absmax, as `hash` goes through them.
  struct Chunk {
    uint32_t id;
    const TensorEntry* entry;
    int64_t at, n_bytes;
  };
  // Hash of names, shapes, dtypes and content of every tensor asked for, in one pass over all bytes: `get`
  // gives those of a chunk, `done` is told when they have been hashed; both on the thread that hashes it. The
  // kept file is in it. FormatError: that is damaged, or of other weights.
  uint64_t hash(ThreadPool& pool, const std::function<const uint8_t*(const Chunk&, int thread)>& get,
                const std::function<void(const Chunk&, const uint8_t* bytes)>& done) const;
  // The same, read through a buffer a thread.
  uint64_t hash(ThreadPool& pool) const;

 private:
  void check_originals() const;
  void check_names(const std::vector<TensorRequest>& requests) const;
  void find(const TensorRequest& request);
  void find_nf4(const TensorRequest& request, const TensorEntry& state, BaseTensor& out) const;
  void find_int8(const TensorRequest& request, BaseTensor& out) const;
  std::vector<float> floats(const TensorEntry& t) const;

  Safetensors file_;
  std::vector<std::string> names_;
  std::vector<BaseTensor> tensors_;
  std::optional<Originals> originals_;
};

}  // namespace smezo
