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

Pages allocate_pages(int64_t n_bytes) {
  const int64_t n = whole_pages(std::max<int64_t>(n_bytes, 1));
  void* const p =
      mmap(nullptr, static_cast<size_t>(n), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return Pages(p == MAP_FAILED ? nullptr : p, PagesDelete{n});
}

void PagesDelete::operator()(void* p) const { munmap(p, static_cast<size_t>(n_bytes)); }

#else

Pages allocate_pages(int64_t n_bytes) {
  const int64_t n = whole_pages(std::max<int64_t>(n_bytes, 1));
  void* const p = std::aligned_alloc(kPageBytes, static_cast<size_t>(n));
  if (p != nullptr) std::memset(p, 0, static_cast<size_t>(n));
  return Pages(p, PagesDelete{n});
}

void PagesDelete::operator()(void* p) const { std::free(p); }

#endif

}  // namespace smezo
