// Where weights lie. For a model that fits in memory: the base mapped read-only, and working copies of the
// tensors that train.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/threads.h"
#include "base/view.h"

namespace smezo {

struct TensorRequest {
  std::string name;      // canonical Hugging Face name; its rank in the list is the tensor id
  int64_t rows, cols;    // expected; vectors are rows = 1
  bool trained = false;  // gets a working copy
};

class Store {
 public:
  // Opens <folder>/model.safetensors or its sharded index read-only. `requests` in tensor-id order. `values`:
  // dtype of working copies. What is frozen is used in place, as stored. FormatError: a tensor is missing,
  // has another shape, or a dtype that is not F32, F16, BF16. Tensors nobody asked for are ignored when they
  // are known buffers (rotary inv_freq), else FormatError.
  static std::unique_ptr<Store> open(const std::string& folder, const std::vector<TensorRequest>& requests,
                                     DType values, ThreadPool& pool);
  virtual ~Store() = default;

  virtual int64_t n_tensors() const = 0;
  virtual const TensorRequest& request(uint32_t tensor_id) const = 0;
  virtual WeightView weight(uint32_t tensor_id) = 0;       // the working copy if trained, else the base
  virtual WeightView base_weight(uint32_t tensor_id) = 0;  // the base as stored, never writable
  // Elements [e0, e0 + n) of a trained tensor as a fresh working copy would hold them (rounded to 24 bits
  // where values are BF16T8), fp32.
  virtual void base_values(uint32_t tensor_id, int64_t e0, int64_t n, float* out) = 0;
  // A frozen tensor of which only a few rows were read: its pages leave this process's memory and come back
  // when touched.
  virtual void rest(uint32_t tensor_id) = 0;
  virtual DType base_dtype() const = 0;  // the most common dtype of the base's matrices
  // Covers names, shapes, dtypes and content of every tensor asked for (16 hex digits of a content hash
  // chain; see store.cpp).
  virtual std::string fingerprint() = 0;
  virtual int64_t working_copy_bytes() const = 0;
};

}  // namespace smezo
