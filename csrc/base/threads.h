// A fixed pool of threads that sleeps when idle. A spinning pool was seen 10 to 40 times slower when another
// process used a core, so waiting spins for a few microseconds at most and then blocks.
#pragma once
#include <cstdint>
#include <functional>

namespace smezo {

class ThreadPool {
 public:
  // n_threads counts the caller: 1 starts no thread. ArgumentError outside 1..1024.
  explicit ThreadPool(int n_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const;

  // Calls body(item, thread) for every item in [0, n_items), items handed out one at a time in increasing
  // order; thread in [0, size()). Which thread takes an item is not determined, so a body's result may depend
  // on item only (I12). The first exception thrown by a body is rethrown here after all threads have stopped.
  // Not reentrant.
  void run(int64_t n_items, const std::function<void(int64_t item, int thread)>& body);

 private:
  struct State;
  State* s_;
};

// Threads to use when the user says nothing: SMEZO_THREADS, else the CPUs this process may run on.
int default_threads();

}  // namespace smezo
