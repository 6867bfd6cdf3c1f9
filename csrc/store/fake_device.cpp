#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <thread>

#include "base/error.h"
#include "base/pages.h"
#include "store/device.h"

namespace smezo {
namespace {

class FakeDevice final : public Device {
 public:
  FakeDevice(int64_t size_bytes, int64_t bytes_per_s)
      : size_(size_bytes), bytes_per_s_(bytes_per_s), copier_([this] { copy_all(); }) {}
  ~FakeDevice() override {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    more_.notify_all();
    copier_.join();
  }

  uint8_t* allocate(int64_t n_bytes) override {
    const int64_t n = whole_pages(n_bytes);
    if (used_ + n > size_) return nullptr;
    Pages memory = allocate_pages(n);
    uint8_t* const out = static_cast<uint8_t*>(memory.get());
    if (out == nullptr) return nullptr;
    blocks_.emplace(out, Block{std::move(memory), n});
    used_ += n;
    peak_ = std::max(peak_, used_);
    return out;
  }
  void free(uint8_t* memory) override {
    const auto block = blocks_.find(memory);
    check<ArgumentError>(block != blocks_.end(), "device", "memory that is freed was not allocated there");
    used_ -= block->second.n_bytes;
    blocks_.erase(block);
  }
  int64_t size_bytes() const override { return size_; }
  int64_t used_bytes() const override { return used_; }
  int64_t peak_bytes() const override { return peak_; }

  Event copy(uint8_t* to, const uint8_t* from, int64_t n_bytes) override {
    const auto after = blocks_.upper_bound(to);
    const bool inside =
        after != blocks_.begin() &&
        to + n_bytes <= std::prev(after)->first + static_cast<ptrdiff_t>(std::prev(after)->second.n_bytes);
    check<ArgumentError>(inside, "device",
                         "a copy of " + std::to_string(n_bytes) + " bytes to memory not its own");
    const std::lock_guard<std::mutex> lock(mutex_);
    jobs_.push_back({to, from, n_bytes});
    more_.notify_one();
    return ++asked_;
  }
  bool has_come(Event event) const override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return done_ >= event;
  }
  void wait(Event event) override {
    std::unique_lock<std::mutex> lock(mutex_);
    came_.wait(lock, [&] { return done_ >= event; });
  }

 private:
  struct Block {
    Pages memory;
    int64_t n_bytes;
  };
  struct Job {
    uint8_t* to;
    const uint8_t* from;
    int64_t n_bytes;
  };

  void copy_all() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      more_.wait(lock, [&] { return stop_ || !jobs_.empty(); });
      if (jobs_.empty()) return;
      const Job job = jobs_.front();
      jobs_.pop_front();
      lock.unlock();
      // Late as well as slow: whoever does not wait for the event reads what was there before.
      if (bytes_per_s_ > 0)
        std::this_thread::sleep_for(std::chrono::nanoseconds(job.n_bytes * 1'000'000'000 / bytes_per_s_));
      std::memcpy(job.to, job.from, static_cast<size_t>(job.n_bytes));
      lock.lock();
      ++done_;
      came_.notify_all();
    }
  }

  const int64_t size_, bytes_per_s_;
  int64_t used_ = 0, peak_ = 0;
  std::map<uint8_t*, Block> blocks_;
  mutable std::mutex mutex_;
  std::condition_variable more_, came_;
  std::deque<Job> jobs_;
  Event asked_ = 0, done_ = 0;
  bool stop_ = false;
  std::thread copier_;
};

}  // namespace

std::unique_ptr<Device> make_fake_device(int64_t size_bytes, int64_t bytes_per_s) {
  return std::make_unique<FakeDevice>(size_bytes, bytes_per_s);
}

}  // namespace smezo
