#include "base/pages.h"

#include <sys/mman.h>

namespace smezo {

Pages::Pages(int64_t n_bytes) {
  if (n_bytes <= 0) return;
  void* const p =
      mmap(nullptr, static_cast<size_t>(n_bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) return;
  at_ = static_cast<uint8_t*>(p);
  n_bytes_ = n_bytes;
}

Pages::~Pages() {
  if (at_ != nullptr) munmap(at_, static_cast<size_t>(n_bytes_));
}

}  // namespace smezo
