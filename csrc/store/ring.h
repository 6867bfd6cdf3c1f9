// A ring of memory from which blocks are taken and given back in the same order: what streams never fragments
// it and never asks the system for memory.
#pragma once
#include <algorithm>
#include <cstdint>
#include <deque>
#include <string>

#include "base/error.h"
#include "base/pages.h"

namespace smezo {

class Ring {
 public:
  static constexpr int64_t kAlign = kPageBytes;

  explicit Ring(int64_t n_bytes) : size_((n_bytes + kAlign - 1) / kAlign * kAlign) {
    if (size_ == 0) return;
    own_ = allocate_pages(size_, true);
    memory_ = static_cast<uint8_t*>(own_.get());
    check<BudgetError>(memory_ != nullptr, "store",
                       "no memory for a ring of " + std::to_string(size_) + " bytes");
  }
  // In memory of the caller's, whole pages.
  Ring(uint8_t* memory, int64_t n_bytes) : size_(n_bytes), memory_(memory) {}

  // nullptr when there is no room before the oldest blocks are given back. n_bytes: a multiple of kAlign; a
  // block of none takes kAlign, or it would not tell where the next one begins.
  uint8_t* take(int64_t n_bytes) {
    n_bytes = std::max(n_bytes, kAlign);
    // Also an empty ring goes on where the last block ended: how much of it is ever touched does then not
    // hang on who was faster.
    int64_t at = end_;
    const int64_t oldest = blocks_.empty() ? size_ : blocks_.front().begin;
    const bool wrapped = !blocks_.empty() && blocks_.back().begin < oldest;
    if (wrapped) {
      if (at + n_bytes > oldest) return nullptr;
    } else if (at + n_bytes > size_) {
      at = 0;
      if (n_bytes > oldest) return nullptr;
    }
    end_ = at + n_bytes;
    blocks_.push_back({at, end_});
    return memory_ + at;
  }
  void give_back_oldest() {
    check<ArgumentError>(!blocks_.empty(), "store",
                         "nothing was taken from the ring that could be given back");
    blocks_.pop_front();
  }
  void clear() {
    blocks_.clear();
    end_ = 0;
  }
  int64_t size() const { return size_; }

 private:
  struct Block {
    int64_t begin, end;
  };
  int64_t size_, end_ = 0;
  Pages own_;
  uint8_t* memory_ = nullptr;
  std::deque<Block> blocks_;
};

}  // namespace smezo
