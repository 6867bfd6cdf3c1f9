// The pool: one word wakes the workers (epoch), one word lets them into a run and tells when the last has
// left (gate), one counter hands out items. A worker that wakes late finds the gate shut and sleeps again, so
// a tiny run never waits for a sleeping thread.
#include "base/threads.h"

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.h"

#if defined(__linux__)
#include <sched.h>
#endif

namespace smezo {
namespace {

constexpr auto kSpin = std::chrono::microseconds(20);
constexpr uint32_t kOpen =
    1u << 16;  // gate: this bit while items may be left, below it the number of workers inside
constexpr int kMaxThreads = 1024;

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

template <class Done>
bool spin_until(const Done& done) {
  const auto give_up = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 16; ++i) {
      if (done()) return true;
      relax();
    }
  } while (std::chrono::steady_clock::now() < give_up);
  return false;
}

}  // namespace

struct ThreadPool::State {
  // Separate cache lines: the counter is written for every item, the other two are watched by sleepers.
  alignas(64) std::atomic<int> epoch{0};
  alignas(64) std::atomic<uint32_t> gate{0};
  alignas(64) std::atomic<int64_t> next{0};
  alignas(64) int64_t n_items = 0;
  const std::function<void(int64_t, int)>* body = nullptr;
  std::atomic<bool> failed{false};
  std::exception_ptr error;  // written by the one thread that set failed
  std::atomic<bool> running{false};
  std::atomic<bool> stop{false};
  int size = 1;
  std::vector<std::thread> workers;

  void work(int thread) {
    for (;;) {
      const int64_t item = next.fetch_add(1, std::memory_order_relaxed);
      if (item >= n_items) return;
      try {
        (*body)(item, thread);
      } catch (...) {
        if (!failed.exchange(true)) error = std::current_exception();
        next.store(n_items, std::memory_order_relaxed);
        return;
      }
    }
  }

  void enter(int thread) {
    uint32_t g = gate.load(std::memory_order_acquire);
    while (g & kOpen) {
      if (!gate.compare_exchange_weak(g, g + 1, std::memory_order_acq_rel, std::memory_order_acquire))
        continue;
      work(thread);
      // 1 before: the caller has shut the gate and this was the last worker inside.
      if (gate.fetch_sub(1, std::memory_order_acq_rel) == 1) gate.notify_one();
      return;
    }
  }

  void worker(int thread) {
    int seen = 0;
    for (;;) {
      const auto woken = [&] { return epoch.load(std::memory_order_acquire) != seen; };
      if (!spin_until(woken)) epoch.wait(seen, std::memory_order_acquire);
      seen = epoch.load(std::memory_order_acquire);
      if (stop.load(std::memory_order_acquire)) return;
      enter(thread);
    }
  }

  void wake() {
    epoch.fetch_add(1, std::memory_order_acq_rel);
    epoch.notify_all();
  }

  void shut_down() {
    stop.store(true, std::memory_order_release);
    wake();
    for (std::thread& t : workers) t.join();
  }
};

ThreadPool::ThreadPool(int n_threads) : s_(nullptr) {
  check<ArgumentError>(n_threads >= 1 && n_threads <= kMaxThreads, "threads",
                       std::to_string(n_threads) + " threads, expected 1 to " + std::to_string(kMaxThreads) +
                           ", check --threads or SMEZO_THREADS");
  State* s = new State;
  s->size = n_threads;
  try {
    for (int t = 1; t < n_threads; ++t) s->workers.emplace_back([s, t] { s->worker(t); });
  } catch (const std::exception& e) {
    const size_t started = s->workers.size() + 1;
    s->shut_down();
    delete s;
    fail<ArgumentError>("threads", "the system started " + std::to_string(started) + " threads, expected " +
                                       std::to_string(n_threads) + ", a limit on processes? (" + e.what() +
                                       ")");
  }
  s_ = s;
}

ThreadPool::~ThreadPool() {
  s_->shut_down();
  delete s_;
}

int ThreadPool::size() const { return s_->size; }

void ThreadPool::run(int64_t n_items, const std::function<void(int64_t item, int thread)>& body) {
  State& s = *s_;
  check<ArgumentError>(!s.running.exchange(true, std::memory_order_acquire), "threads",
                       "a run was begun inside a run, expected one at a time, a body or a second thread uses "
                       "the same pool");
  s.body = &body;
  s.n_items = n_items;
  s.failed.store(false, std::memory_order_relaxed);
  s.next.store(0, std::memory_order_relaxed);
  const bool shared = s.size > 1 && n_items > 1;
  if (shared) {
    s.gate.store(kOpen, std::memory_order_release);
    s.wake();
  }
  s.work(0);
  if (shared) {
    s.gate.fetch_and(~kOpen, std::memory_order_acq_rel);
    const auto empty = [&] { return s.gate.load(std::memory_order_acquire) == 0; };
    if (!spin_until(empty))
      for (uint32_t g; (g = s.gate.load(std::memory_order_acquire)) != 0;)
        s.gate.wait(g, std::memory_order_acquire);
  }
  std::exception_ptr error = std::exchange(s.error, nullptr);
  s.running.store(false, std::memory_order_release);
  if (error) std::rethrow_exception(error);
}

int default_threads() {
  const char* text = std::getenv("SMEZO_THREADS");
  if (text != nullptr && *text != '\0') {
    char* end = nullptr;
    const long n = std::strtol(text, &end, 10);
    check<ArgumentError>(*end == '\0' && n >= 1 && n <= kMaxThreads, "threads",
                         std::string("SMEZO_THREADS=") + text + ", expected a whole number from 1 to " +
                             std::to_string(kMaxThreads) + ", misspelt?");
    return static_cast<int>(n);
  }
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  // Fails on machines with more CPUs than the set has bits; the count of all CPUs is right enough there.
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  const unsigned n = std::thread::hardware_concurrency();
  return n == 0 ? 1 : static_cast<int>(n > kMaxThreads ? kMaxThreads : n);
}

}  // namespace smezo
