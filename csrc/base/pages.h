// Whole pages from the system, given back to it at once. What is large and what comes and goes with a budget
// does not go through malloc: its thresholds move with what was freed last, and then it keeps what it was
// given back.
#pragma once
#include <cstdint>
#include <memory>

namespace smezo {

constexpr int64_t kPageBytes = 4096, kHugePageBytes = 2 << 20;
inline int64_t whole_pages(int64_t n_bytes) { return (n_bytes + kPageBytes - 1) / kPageBytes * kPageBytes; }

struct PagesDelete {
  int64_t n_bytes = 0;
  void operator()(void* p) const;
};
using Pages = std::unique_ptr<void, PagesDelete>;

// Aligned to kPageBytes and zero; none of it resident before it is touched. nullptr: the system refused.
// huge: in pages of 2 MiB where the system has them, for what is read into past the page cache, which pins
// its target page by page; what is touched in part only would take more than was touched.
Pages allocate_pages(int64_t n_bytes, bool huge = false);

}  // namespace smezo
