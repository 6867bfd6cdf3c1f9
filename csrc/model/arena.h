// One aligned allocation that all buffers of a forward come from. It only grows: a forward of the same size
// allocates nothing, since freeing and asking again each layer keeps dead pages resident.
#pragma once
#include <cstdint>
#include <string>

#include "base/error.h"
#include "base/pages.h"

namespace smezo {

// Two passes over the same requests: the first (before `commit`) only adds up bytes, the second hands out
// pointers.
class Arena {
 public:
  static constexpr int64_t kAlign = 64;

  void begin() { used_bytes_ = 0, handing_out_ = false; }
  void commit() {
    if (used_bytes_ > size_bytes_) {
      memory_.reset();
      size_bytes_ = 0;
      memory_ = allocate_pages(used_bytes_);
      check<BudgetError>(
          memory_ != nullptr, "model",
          "no memory for " + std::to_string(used_bytes_) + " bytes of activations; use fewer tokens a batch");
      size_bytes_ = used_bytes_;
      // Fresh pages are zero: padding columns are read and thrown away, and denormals there would be slow.
    }
    used_bytes_ = 0;
    handing_out_ = true;
  }

  template <class T>
  T* take(int64_t n) {
    const int64_t at = used_bytes_;
    used_bytes_ += (n * static_cast<int64_t>(sizeof(T)) + kAlign - 1) / kAlign * kAlign;
    return handing_out_ ? reinterpret_cast<T*>(static_cast<char*>(memory_.get()) + at) : nullptr;
  }

  int64_t size_bytes() const { return size_bytes_; }
  int64_t used_bytes() const { return used_bytes_; }  // of the pass over the requests so far

 private:
  Pages memory_;
  int64_t size_bytes_ = 0;
  int64_t used_bytes_ = 0;
  bool handing_out_ = false;
};

}  // namespace smezo
