// Real files whose reads are slow, short, refused or fail, at random or at will; beneath the library in place
// of the operating system.
#pragma once
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdint>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "io/file.h"

namespace smezo_test {

class FaultyFiles final : public smezo::FileSystem {
 public:
  explicit FaultyFiles(uint64_t seed) : random_(seed), inner_(smezo::set_file_system(this)) {}
  ~FaultyFiles() override { smezo::set_file_system(nullptr); }

  // Changed only while no read is in flight, but for `failing` and the gate.
  int64_t longest_delay_us = 0;
  double shortens = 0;                // probability that a read gives less than it was asked for
  double interrupts = 0;              // probability of -EINTR
  std::atomic<int> failing = 0;       // every read gives -failing
  std::atomic<int64_t> fail_at = -1;  // reads until they begin to give -EIO; -1: never
  bool direct_opens = true, direct_reads = true;

  // While shut, reads wait; then they write into their memory, whether or not it is still there.
  void shut() {
    const std::lock_guard<std::mutex> lock(mutex_);
    is_shut_ = true;
  }
  void reopen() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      is_shut_ = false;
    }
    changed_.notify_all();
  }
  void wait_for_waiting(int n) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return n_waiting_ >= n; });
  }
  int64_t n_reads() const { return n_reads_; }
  int64_t n_direct_reads() const { return n_direct_reads_; }

  int open(const std::string& path, smezo::Open how) override {
    if (how == smezo::Open::direct && !direct_opens) return -EINVAL;
    // The rules of direct reading are enforced here, stricter than some file systems do.
    const int handle = inner_->open(path, how == smezo::Open::direct ? smezo::Open::read : how);
    const std::lock_guard<std::mutex> lock(mutex_);
    if (handle >= 0 && how == smezo::Open::direct) direct_.insert(handle);
    return handle;
  }
  int close(int handle) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    direct_.erase(handle);
    return inner_->close(handle);
  }
  int64_t pread(int handle, void* to, int64_t n_bytes, int64_t offset) override {
    int64_t delay, most = n_bytes;
    bool direct, interrupted;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      ++n_reads_;
      if (is_shut_) {
        ++n_waiting_;
        changed_.notify_all();
        changed_.wait(lock, [&] { return !is_shut_; });
        --n_waiting_;
      }
      direct = direct_.count(handle) > 0;
      n_direct_reads_ += direct;
      delay = longest_delay_us > 0 ? static_cast<int64_t>(random_() % static_cast<uint64_t>(longest_delay_us))
                                   : 0;
      interrupted = chance(interrupts);
      if (n_bytes > 1 && chance(shortens))
        most = 1 + static_cast<int64_t>(random_() % static_cast<uint64_t>(n_bytes));
      if (direct && random_() % 2) most = std::max<int64_t>(most / kSector * kSector, kSector);
      if (fail_at > 0 && --fail_at == 0) failing = EIO;
    }
    // The system would say that there is no memory there, and a reader that everything is well.
    if (n_bytes > 0) *static_cast<volatile uint8_t*>(to) = 0;
    if (delay > 0) std::this_thread::sleep_for(std::chrono::microseconds(delay));
    if (interrupted) return -EINTR;
    if (failing != 0) return -failing;
    if (direct && !direct_reads) return -EINVAL;
    if (direct &&
        (offset % kSector != 0 || n_bytes % kSector != 0 || reinterpret_cast<uintptr_t>(to) % kSector != 0))
      return -EINVAL;
    return inner_->pread(handle, to, std::min(most, n_bytes), offset);
  }

  int64_t size(int handle) override { return inner_->size(handle); }
  int64_t pwrite(int h, const void* from, int64_t n, int64_t at) override {
    return inner_->pwrite(h, from, n, at);
  }
  int sync(int handle) override { return inner_->sync(handle); }
  int truncate(int handle, int64_t n) override { return inner_->truncate(handle, n); }
  int lock(int handle) override { return inner_->lock(handle); }
  int map(int handle, int64_t n, const uint8_t** at) override { return inner_->map(handle, n, at); }
  void unmap(const uint8_t* at, int64_t n) override { inner_->unmap(at, n); }
  void dont_need(const uint8_t* at, int64_t n) override { inner_->dont_need(at, n); }
  void will_need(int h, int64_t at, int64_t n) override { inner_->will_need(h, at, n); }
  void drop_cache(int h, int64_t at, int64_t n) override { inner_->drop_cache(h, at, n); }
  int rename(const std::string& from, const std::string& to) override { return inner_->rename(from, to); }
  int remove(const std::string& path) override { return inner_->remove(path); }
  int make_folder(const std::string& path) override { return inner_->make_folder(path); }
  int sync_folder(const std::string& path) override { return inner_->sync_folder(path); }
  int list(const std::string& f, std::vector<std::string>* names) override { return inner_->list(f, names); }
  int kind(const std::string& path) override { return inner_->kind(path); }
  int64_t free_bytes(const std::string& folder) override { return inner_->free_bytes(folder); }

 private:
  static constexpr int64_t kSector = 512;
  bool chance(double p) { return p > 0 && static_cast<double>(random_() % 1000000) < p * 1e6; }

  std::mt19937_64 random_;
  smezo::FileSystem* inner_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::set<int> direct_;
  bool is_shut_ = false;
  int n_waiting_ = 0;
  std::atomic<int64_t> n_reads_ = 0, n_direct_reads_ = 0;
};

// A folder of this process, removed with its files.
class TemporaryFolder {
 public:
  explicit TemporaryFolder(const std::string& name)
      : path_("/tmp/smezo_" + name + "-" + std::to_string(getpid())) {
    smezo::make_folders(path_);
  }
  ~TemporaryFolder() {
    for (const std::string& f : smezo::list_folder(path_)) smezo::remove_file(smezo::join(path_, f));
    rmdir(path_.c_str());
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// What hangs is ended by a signal.
inline void no_longer_than(unsigned seconds) { alarm(seconds); }

}  // namespace smezo_test
