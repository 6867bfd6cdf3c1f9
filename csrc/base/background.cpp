#include "base/background.h"

#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>

namespace smezo {

struct Background::State {
  void work() {
    std::unique_lock<std::mutex> lock(mutex);
    while (true) {
      more.wait(lock, [&] { return stop || !jobs.empty(); });
      if (stop) return;
      const std::function<void()> job = std::move(jobs.front());
      jobs.pop_front();
      runs = true;
      lock.unlock();
      std::exception_ptr thrown;
      try {
        job();
      } catch (...) {
        thrown = std::current_exception();
      }
      lock.lock();
      runs = false;
      ++n_over;
      if (thrown) {
        error = thrown;
        give_up();
      }
      over.notify_all();
    }
  }

  // With the lock held.
  void give_up() {
    n_over += static_cast<int64_t>(jobs.size());
    jobs.clear();
  }

  std::mutex mutex;
  std::condition_variable more, over;
  std::deque<std::function<void()>> jobs;
  int64_t n_asked = 0, n_over = 0;
  bool runs = false, stop = false;
  std::exception_ptr error;
  std::thread thread;
};

Background::Background() : s_(std::make_unique<State>()) {}

Background::~Background() {
  {
    const std::lock_guard<std::mutex> lock(s_->mutex);
    s_->stop = true;
  }
  s_->more.notify_all();
  if (s_->thread.joinable()) s_->thread.join();
}

int64_t Background::run(std::function<void()> job) {
  const std::lock_guard<std::mutex> lock(s_->mutex);
  if (!s_->thread.joinable()) s_->thread = std::thread([s = s_.get()] { s->work(); });
  s_->jobs.push_back(std::move(job));
  if (s_->error) s_->give_up();
  s_->more.notify_one();
  return ++s_->n_asked;
}

bool Background::is_over(int64_t job) const {
  const std::lock_guard<std::mutex> lock(s_->mutex);
  return s_->n_over >= job;
}

void Background::wait(int64_t job) {
  std::unique_lock<std::mutex> lock(s_->mutex);
  s_->over.wait(lock, [&] { return s_->n_over >= job; });
  if (s_->error) std::rethrow_exception(s_->error);
}

void Background::wait_for_all() { wait(s_->n_asked); }

void Background::drop() {
  std::unique_lock<std::mutex> lock(s_->mutex);
  s_->give_up();
  s_->over.wait(lock, [&] { return !s_->runs; });
  s_->error = nullptr;
}

}  // namespace smezo
