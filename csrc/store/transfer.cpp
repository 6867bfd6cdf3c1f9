#include "store/transfer.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>

#include "base/error.h"
#include "store/ring.h"

namespace smezo {

struct Transfer::State {
  State(const std::vector<std::string>& paths, int64_t ring_bytes, PageCache cache)
      : cache(cache), ring(ring_bytes) {
    files.reserve(paths.size());
    for (const std::string& p : paths) files.emplace_back(p, cache);
  }

  // Here, so that it also happens when not all readers could be started.
  ~State() {
    {
      const std::lock_guard<std::mutex> lock(mutex);
      stop = true;
    }
    more.notify_all();
    for (std::thread& t : threads) t.join();
  }

  // The next job and where it goes; -1 when there is none or no room. With the lock held.
  int64_t claim() {
    if (error || claimed == jobs.size()) return -1;
    ReadJob& job = jobs[claimed];
    if (job.to == nullptr) job.to = ring.take(room_for(job));
    if (job.to == nullptr) return -1;
    return static_cast<int64_t>(claimed++);
  }

  void read(size_t i) {
    const ReadJob job = jobs[i];
    uint8_t* to = job.to;
    for (size_t p = 0; p < job.parts.size(); ++p) {
      const ReadPart& part = job.parts[p];
      if (part.n_bytes == 0) continue;
      at[i][p] = to;
      if (part.read) {
        at[i][p] = files[static_cast<size_t>(part.file)].read(part.offset, part.n_bytes, to, part.align);
        n_read += part.n_bytes;
      }
      to += RangeFile::room_for(part.offset, part.n_bytes);
    }
  }

  // Reads job i without the lock, which is held before and after.
  void work(size_t i, std::unique_lock<std::mutex>& lock) {
    ++in_flight;
    lock.unlock();
    std::exception_ptr failed;
    try {
      read(i);
    } catch (...) {
      failed = std::current_exception();
    }
    lock.lock();
    --in_flight;
    if (failed && !error) error = failed;
    ready[i] = true;
    done.notify_all();
  }

  void reader() {
    std::unique_lock<std::mutex> lock(mutex);
    while (!stop) {
      const int64_t i = claim();
      if (i >= 0) {
        work(static_cast<size_t>(i), lock);
      } else {
        more.wait(lock);
      }
    }
  }

  PageCache cache;
  std::vector<RangeFile> files;
  Ring ring;
  std::mutex mutex;
  std::condition_variable more, done;  // for readers; for whoever waits
  std::vector<ReadJob> jobs;
  std::vector<Pointers> at;
  std::vector<char> ready;
  size_t claimed = 0, given = 0;
  int in_flight = 0;
  std::exception_ptr error;
  bool stop = false;
  std::atomic<int64_t> n_read{0};
  int64_t n_given = 0;
  double stall_s = 0;
  std::vector<std::thread> threads;
};

int64_t Transfer::room_for(const ReadJob& job) {
  int64_t n = 0;
  for (const ReadPart& p : job.parts) n += p.n_bytes == 0 ? 0 : RangeFile::room_for(p.offset, p.n_bytes);
  return n;
}

Transfer::Transfer(const std::vector<std::string>& paths, int64_t ring_bytes, int n_readers, PageCache cache)
    : s_(std::make_unique<State>(paths, ring_bytes, cache)) {
  for (int i = 0; i < n_readers; ++i) s_->threads.emplace_back([this] { s_->reader(); });
}

Transfer::~Transfer() = default;

void Transfer::begin(std::vector<ReadJob> jobs) {
  std::unique_lock<std::mutex> lock(s_->mutex);
  s_->claimed = s_->jobs.size();
  s_->done.wait(lock, [&] { return s_->in_flight == 0; });
  s_->ring.clear();
  s_->error = nullptr;
  s_->claimed = s_->given = 0;
  s_->at.assign(jobs.size(), Pointers{});
  s_->ready.assign(jobs.size(), false);
  s_->jobs = std::move(jobs);
  s_->more.notify_all();
}

Transfer::Pointers Transfer::next() {
  std::unique_lock<std::mutex> lock(s_->mutex);
  if (s_->error) std::rethrow_exception(s_->error);
  check<ArgumentError>(s_->given < s_->jobs.size(), "transfer", "no job is left of those announced");
  const size_t i = s_->given++;
  for (const ReadPart& p : s_->jobs[i].parts) s_->n_given += p.read ? p.n_bytes : 0;
  if (s_->ready[i]) return s_->at[i];
  const auto begin = std::chrono::steady_clock::now();
  // No reader had room for it or time: whoever waits reads it. What is held is the caller's, so if there is
  // no room now there will never be.
  if (s_->claimed == i) {
    check<BudgetError>(s_->claim() >= 0, "transfer",
                       "no room for " + std::to_string(room_for(s_->jobs[i])) + " bytes in a ring of " +
                           std::to_string(s_->ring.size()) +
                           ", of which some may be held; expected a larger ring");
    s_->work(i, lock);
  }
  s_->done.wait(lock, [&] { return s_->ready[i] || s_->error; });
  s_->stall_s += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  if (s_->error) std::rethrow_exception(s_->error);
  return s_->at[i];
}

bool Transfer::next_is_there() const {
  const std::lock_guard<std::mutex> lock(s_->mutex);
  return !s_->error && s_->given < s_->jobs.size() && s_->ready[s_->given];
}

void Transfer::release_oldest() {
  {
    const std::lock_guard<std::mutex> lock(s_->mutex);
    s_->ring.give_back_oldest();
  }
  s_->more.notify_one();
}

void Transfer::set_file(int i, const std::string& path) {
  begin({});
  RangeFile f(path, s_->cache);
  const std::lock_guard<std::mutex> lock(s_->mutex);
  if (static_cast<size_t>(i) < s_->files.size()) {
    s_->files[static_cast<size_t>(i)] = std::move(f);
  } else {
    s_->files.push_back(std::move(f));
  }
}

const RangeFile& Transfer::file(int i) const { return s_->files[static_cast<size_t>(i)]; }
int64_t Transfer::bytes_read() const { return s_->n_read; }
int64_t Transfer::bytes_given() const { return s_->n_given; }
bool Transfer::has_failed() const {
  const std::lock_guard<std::mutex> lock(s_->mutex);
  return s_->error != nullptr;
}
double Transfer::stall_s() const { return s_->stall_s; }
int64_t Transfer::ring_bytes() const { return s_->ring.size(); }

}  // namespace smezo
