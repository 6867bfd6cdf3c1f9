// Compiled without the hooks that it is called by.
#include "coverage.h"

#include <atomic>

// <sanitizer/allocator_interface.h>, which not every compiler brings.
extern "C" int __sanitizer_install_malloc_and_free_hooks(void (*)(const volatile void*, size_t),
                                                         void (*)(const volatile void*));
extern "C" const char
    __executable_start;  // of the linker: edges are counted from it, or they would differ from run to run
extern "C" size_t __sanitizer_get_allocated_size(const volatile void*);

namespace {

constexpr size_t kEdges = 1 << 16;
uint8_t now[kEdges], ever[kEdges];
size_t touched[kEdges], n_touched = 0;
thread_local uintptr_t before = 0;
std::atomic<bool> counts = false;
std::atomic<int64_t> held = 0, most = 0;

void took(const volatile void*, size_t n) {
  if (!counts) return;
  const int64_t now_held = held += static_cast<int64_t>(n);
  int64_t seen = most;
  while (now_held > seen && !most.compare_exchange_weak(seen, now_held)) {
  }
}
void gives(const volatile void* p) {
  if (counts) held -= static_cast<int64_t>(__sanitizer_get_allocated_size(p));
}
[[maybe_unused]] const int installed = __sanitizer_install_malloc_and_free_hooks(took, gives);

}  // namespace

extern "C" void __sanitizer_cov_trace_pc() {
  const uintptr_t pc = reinterpret_cast<uintptr_t>(__builtin_return_address(0)) -
                       reinterpret_cast<uintptr_t>(&__executable_start);
  const size_t edge = (pc ^ (before << 1)) % kEdges;
  before = pc;
  if (now[edge] == 0 && n_touched < kEdges) touched[n_touched++] = edge;
  if (now[edge] < 255) ++now[edge];
}

namespace smezo_fuzz {

void forget_edges() {
  for (size_t i = 0; i < n_touched; ++i) now[touched[i]] = 0;
  n_touched = 0;
  before = 0;
}

// Counts in classes, as AFL does: once, twice, a few times, often are different.
bool new_edges() {
  bool found = false;
  for (size_t i = 0; i < n_touched; ++i) {
    const uint8_t n = now[touched[i]];
    const uint8_t bit = n == 1 ? 1 : n == 2 ? 2 : n < 8 ? 4 : n < 32 ? 8 : n < 128 ? 16 : 32;
    if (ever[touched[i]] & bit) continue;
    ever[touched[i]] |= bit;
    found = true;
  }
  return found;
}

void forget_all_edges() {
  forget_edges();
  for (uint8_t& e : ever) e = 0;
}

size_t n_edges() {
  size_t n = 0;
  for (const uint8_t e : ever) n += e != 0;
  return n;
}

void count_memory(bool on) {
  if (on) held = 0, most = 0;
  counts = on;
}
int64_t most_memory() { return most; }

}  // namespace smezo_fuzz
