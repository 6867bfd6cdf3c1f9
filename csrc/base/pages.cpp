#include "base/pages.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

// A sanitizer watches the edges of what malloc gave out only.
#if (defined(__unix__) || defined(__APPLE__)) && !defined(__SANITIZE_ADDRESS__)
#define SMEZO_HAVE_MMAP 1
#include <sys/mman.h>
#endif

namespace smezo {

#if SMEZO_HAVE_MMAP

namespace {

#if defined(MADV_HUGEPAGE)
constexpr bool kHaveHuge = true;
constexpr int kHugeAdvice = MADV_HUGEPAGE;
#else
constexpr bool kHaveHuge = false;
constexpr int kHugeAdvice = 0;
#endif

}  // namespace

Pages allocate_pages(int64_t n_bytes, bool huge) {
  const int64_t n = whole_pages(std::max<int64_t>(n_bytes, 1));
  // Huge pages begin at multiples of their size: what is mapped too much goes back at once.
  const int64_t more = kHaveHuge && huge ? kHugePageBytes : 0;
  void* p = mmap(nullptr, static_cast<size_t>(n + more), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                 -1, 0);
  if (p == MAP_FAILED) return Pages(nullptr, PagesDelete{n});
  if (more > 0) {
    char* const begin = static_cast<char*>(p);
    const int64_t before = (kHugePageBytes - reinterpret_cast<intptr_t>(p) % kHugePageBytes) % kHugePageBytes;
    if (before > 0) munmap(begin, static_cast<size_t>(before));
    munmap(begin + before + n, static_cast<size_t>(more - before));
    p = begin + before;
    madvise(p, static_cast<size_t>(n), kHugeAdvice);
  }
  return Pages(p, PagesDelete{n});
}

void PagesDelete::operator()(void* p) const { munmap(p, static_cast<size_t>(n_bytes)); }

#else

Pages allocate_pages(int64_t n_bytes, [[maybe_unused]] bool huge) {
  const int64_t n = whole_pages(std::max<int64_t>(n_bytes, 1));
  void* const p = std::aligned_alloc(kPageBytes, static_cast<size_t>(n));
  if (p != nullptr) std::memset(p, 0, static_cast<size_t>(n));
  return Pages(p, PagesDelete{n});
}

void PagesDelete::operator()(void* p) const { std::free(p); }

#endif

}  // namespace smezo
