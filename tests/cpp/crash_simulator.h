// A disk in memory that can lose power. Beneath the library in place of the operating system, so the library
// is tested unmodified.
//
// Method (after SQLite's src/test6.c): writes, truncations and changes of names are seen at once by the
// running program and queued for the device. sync() puts a file's queue on the device, sync_folder() a
// folder's names. At the n-th operation the power goes: each queued operation is then performed or dropped by
// a seeded choice, and a queued write may also be torn (a prefix up to a sector boundary) or garbled (its
// bytes are noise), as the declared device allows. reboot() goes on with what the device holds. A write never
// harms bytes beside it ("powersafe overwrite"): a device without that is not simulated.
#pragma once
#include <cerrno>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "io/file.h"

namespace smezo_test {

struct PowerLoss {};  // no exception type of the library: nobody there may catch it

struct Device {
  int64_t sector_bytes = 512;
  bool tears = true;
  bool garbles = true;
  // false: says yes and does nothing.
  bool sync_works = true;
  bool sync_folder_works = true;
  int64_t capacity = int64_t{1} << 40;  // bytes over all files
};

class CrashSimulator final : public smezo::FileSystem {
 public:
  explicit CrashSimulator(uint64_t seed, Device device = {}) : device_(device), random_(seed) {
    before_ = smezo::set_file_system(this);
  }
  ~CrashSimulator() override { smezo::set_file_system(before_); }

  Device& device() { return device_; }
  void crash_at(int64_t operation) {
    crash_at_ = n_operations_ + operation;
  }  // 1: the next one; never when not called
  int64_t n_operations() const { return n_operations_; }
  bool is_dead() const { return dead_; }   // without power until reboot()
  uint64_t fate() const { return fate_; }  // what became of everything queued when the power went, as a hash
  void fail_next_sync() { fail_sync_ = true; }
  void shorten_writes(int64_t to) { short_write_ = to; }

  // The device is all that is left; everything is as if just switched on.
  void reboot() {
    if (!dead_) lose_power();
    dead_ = false;
    crash_at_ = INT64_MAX;
    names_ = names_on_device_;
    folders_ = folders_on_device_;
    for (auto& [path, node] : names_) node->now = node->on_device, node->locked = false;
    handles_.clear();
  }

  std::vector<uint8_t>& bytes(const std::string& path) { return names_.at(path)->now; }

  int open(const std::string& path, smezo::Open how) override {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    if (dead_) return -EIO;
    if (how == smezo::Open::direct) return -EINVAL;
    auto at = names_.find(path);
    if (folders_.count(path)) return -EISDIR;
    if (at != names_.end() && how == smezo::Open::create) return -EEXIST;
    if (at == names_.end()) {
      if (how == smezo::Open::read || how == smezo::Open::edit) return -ENOENT;
      if (!folders_.count(smezo::parent_folder(path))) return -ENOENT;
      auto node = std::make_shared<Node>();
      at = names_.emplace(path, node).first;
      queued_names_.push_back({NameChange::link, path, "", node});
      operation();
    }
    handles_[next_handle_] = {at->second, false};
    return next_handle_++;
  }
  int close(int handle) override {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    const auto at = handles_.find(handle);
    if (at == handles_.end()) return -EBADF;
    if (at->second.has_lock) at->second.node->locked = false;
    handles_.erase(at);
    return 0;
  }
  int64_t size(int handle) override {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    return dead_ ? -EIO : static_cast<int64_t>(node(handle).now.size());
  }
  int64_t pread(int handle, void* to, int64_t n, int64_t offset) override {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    if (dead_) return -EIO;
    const auto& b = node(handle).now;
    n = std::max<int64_t>(0, std::min(n, static_cast<int64_t>(b.size()) - offset));
    if (n > 0) std::memcpy(to, b.data() + offset, static_cast<size_t>(n));
    return n;
  }
  int64_t pwrite(int handle, const void* from, int64_t n, int64_t offset) override {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    if (dead_) return -EIO;
    Node& f = node(handle);
    if (short_write_ > 0) n = std::min(n, short_write_);
    const int64_t grows = offset + n - static_cast<int64_t>(f.now.size());
    if (grows > 0) n -= std::max<int64_t>(0, grows - free_bytes(""));
    if (n <= 0) return -ENOSPC;
    const auto* p = static_cast<const uint8_t*>(from);
    Change c{offset, std::vector<uint8_t>(p, p + n), -1};
    perform(c, &f.now);
    f.queue.push_back(std::move(c));
    operation();
    return n;
  }
  int sync(int handle) override {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    if (dead_) return -EIO;
    operation();
    if (fail_sync_) return fail_sync_ = false, -EIO;
    if (!device_.sync_works) return 0;
    Node& f = node(handle);
    for (const auto& c : f.queue) perform(c, &f.on_device);
    f.queue.clear();
    return 0;
  }
  int truncate(int handle, int64_t n) override {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    if (dead_) return -EIO;
    Node& f = node(handle);
    f.queue.push_back({0, {}, n});
    perform(f.queue.back(), &f.now);
    operation();
    return 0;
  }
  int lock(int handle) override {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    Handle& h = handles_.at(handle);
    if (h.node->locked && !h.has_lock) return -EWOULDBLOCK;
    h.has_lock = h.node->locked = true;
    return 0;
  }
  int map(int handle, int64_t n, const uint8_t** at) override {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    if (dead_) return -EIO;
    auto* copy = new uint8_t[static_cast<size_t>(n)];
    std::memcpy(copy, node(handle).now.data(), static_cast<size_t>(n));
    *at = copy;
    return 0;
  }
  void unmap(const uint8_t* at, int64_t) override { delete[] at; }
  void dont_need(const uint8_t*, int64_t) override {}
  int rename(const std::string& from, const std::string& to) override {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    if (dead_) return -EIO;
    if (folders_.count(from)) return rename_folder(from, to);
    const auto at = names_.find(from);
    if (at == names_.end()) return -ENOENT;
    auto node = at->second;
    names_.erase(at);
    names_[to] = node;
    queued_names_.push_back({NameChange::rename, from, to, node});
    operation();
    return 0;
  }
  int remove(const std::string& path) override {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    if (dead_) return -EIO;
    if (!names_.erase(path) && !folders_.erase(path)) return -ENOENT;
    queued_names_.push_back({NameChange::unlink, path, "", nullptr});
    operation();
    return 0;
  }
  int make_folder(const std::string& path) override {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    if (dead_) return -EIO;
    if (!folders_.insert(path).second) return -EEXIST;
    queued_names_.push_back({NameChange::folder, path, "", nullptr});
    operation();
    return 0;
  }
  int sync_folder(const std::string& path) override {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    if (dead_) return -EIO;
    operation();
    if (!device_.sync_folder_works) return 0;
    std::vector<NameChange> others;
    for (const auto& c : queued_names_) {
      if (smezo::parent_folder(c.path) == path)
        perform_name(c);
      else
        others.push_back(c);
    }
    queued_names_ = std::move(others);
    return 0;
  }
  int list(const std::string& folder, std::vector<std::string>* names) override {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    if (dead_) return -EIO;
    if (!folders_.count(folder)) return -ENOENT;
    for (const auto& [path, node] : names_)
      if (smezo::parent_folder(path) == folder) names->push_back(path.substr(folder.size() + 1));
    return 0;
  }
  int kind(const std::string& path) override {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    return folders_.count(path) ? 2 : names_.count(path) ? 1 : 0;
  }
  int64_t free_bytes(const std::string&) override {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    int64_t used = 0;
    for (const auto& [path, node] : names_) used += static_cast<int64_t>(node->now.size());
    return std::max<int64_t>(0, device_.capacity - used);
  }

 private:
  struct Change {
    int64_t offset;
    std::vector<uint8_t> bytes;
    int64_t truncate_to;  // -1: a write
  };
  struct Node {
    std::vector<uint8_t> now, on_device;
    std::vector<Change> queue;
    bool locked = false;
  };
  struct Handle {
    std::shared_ptr<Node> node;
    bool has_lock;
  };
  struct NameChange {
    enum Kind { link, unlink, rename, folder, rename_folder } kind;
    std::string path, to;
    std::shared_ptr<Node> node;
  };

  using Names = std::map<std::string, std::shared_ptr<Node>>;
  // With the files in it; folders in folders are not simulated.
  static void move_folder(const std::string& from, const std::string& to, Names* names,
                          std::set<std::string>* folders) {
    folders->erase(from);
    folders->insert(to);
    for (auto at = names->begin(); at != names->end();) {
      if (smezo::parent_folder(at->first) != from) {
        ++at;
        continue;
      }
      (*names)[to + at->first.substr(from.size())] = at->second;
      at = names->erase(at);
    }
  }
  int rename_folder(const std::string& from, const std::string& to) {
    move_folder(from, to, &names_, &folders_);
    queued_names_.push_back({NameChange::rename_folder, from, to, nullptr});
    operation();
    return 0;
  }

  uint64_t draw() {  // splitmix64
    uint64_t z = (random_ += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }
  // A choice of what becomes of something queued.
  uint64_t choose(uint64_t n) {
    const uint64_t choice = draw() % n;
    fate_ = (fate_ ^ (choice + 1)) * 0x100000001B3ull;
    return choice;
  }
  Node& node(int handle) { return *handles_.at(handle).node; }

  void operation() {
    if (++n_operations_ != crash_at_) return;
    lose_power();
    throw PowerLoss{};
  }

  static void perform(const Change& c, std::vector<uint8_t>* b) {
    if (c.truncate_to >= 0) return b->resize(static_cast<size_t>(c.truncate_to));
    const size_t end = static_cast<size_t>(c.offset) + c.bytes.size();
    if (b->size() < end) b->resize(end);
    std::copy(c.bytes.begin(), c.bytes.end(), b->begin() + c.offset);
  }
  void perform_name(const NameChange& c) {
    if (c.kind == NameChange::link) names_on_device_[c.path] = c.node;
    if (c.kind == NameChange::unlink) names_on_device_.erase(c.path), folders_on_device_.erase(c.path);
    if (c.kind == NameChange::rename_folder)
      move_folder(c.path, c.to, &names_on_device_, &folders_on_device_);
    if (c.kind == NameChange::folder) folders_on_device_.insert(c.path);
    if (c.kind == NameChange::rename) names_on_device_.erase(c.path), names_on_device_[c.to] = c.node;
  }

  void survive(Node* f) {
    for (auto& c : f->queue) {
      const uint64_t choice = choose(4);
      if (c.truncate_to >= 0) {
        if (choice % 2) perform(c, &f->on_device);
        continue;
      }
      if (choice == 1) {
        // Dropped; the length, which is metadata, may have changed all the same.
        if (choose(2)) perform({c.offset, std::vector<uint8_t>(c.bytes.size()), -1}, &f->on_device);
        continue;
      }
      if (choice == 2 && device_.tears) {
        const int64_t first = c.offset / device_.sector_bytes;
        const int64_t n_boundaries =
            (c.offset + static_cast<int64_t>(c.bytes.size()) - 1) / device_.sector_bytes - first;
        const int64_t end = (first + static_cast<int64_t>(choose(static_cast<uint64_t>(n_boundaries + 1)))) *
                            device_.sector_bytes;
        c.bytes.resize(static_cast<size_t>(std::max<int64_t>(0, end - c.offset)));
      }
      if (choice == 3 && device_.garbles)
        for (auto& b : c.bytes) b = static_cast<uint8_t>(draw());
      if (!c.bytes.empty()) perform(c, &f->on_device);
    }
    f->queue.clear();
  }

  void lose_power() {
    dead_ = true;
    fate_ = 0xCBF29CE484222325ull;
    for (const auto& c : queued_names_)
      if (choose(2)) perform_name(c);
    queued_names_.clear();
    std::set<Node*> done;
    for (auto& [path, node] : names_on_device_)
      if (done.insert(node.get()).second) survive(node.get());
    // What lies in a folder that was lost is lost with it.
    for (auto at = names_on_device_.begin(); at != names_on_device_.end();)
      at = folders_on_device_.count(smezo::parent_folder(at->first)) ? std::next(at)
                                                                     : names_on_device_.erase(at);
  }

  std::recursive_mutex mutex_;  // generations are written by a thread of their own
  Device device_;
  uint64_t random_, fate_ = 0;
  smezo::FileSystem* before_ = nullptr;
  Names names_, names_on_device_;
  std::set<std::string> folders_ = {".", "/"}, folders_on_device_ = {".", "/"};
  std::vector<NameChange> queued_names_;
  std::map<int, Handle> handles_;
  int next_handle_ = 3;
  int64_t n_operations_ = 0, crash_at_ = INT64_MAX, short_write_ = 0;
  bool dead_ = false, fail_sync_ = false;
};

}  // namespace smezo_test
