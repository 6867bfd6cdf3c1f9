#include "store/uploads.h"

#include <chrono>

#include "base/error.h"

namespace smezo {
namespace {

constexpr int64_t kAlign = 64;  // of each part on the device
int64_t align_up(int64_t n) { return (n + kAlign - 1) / kAlign * kAlign; }

}  // namespace

int64_t Uploads::room_for(const ReadJob& job) {
  int64_t n = 0;
  for (const ReadPart& p : job.parts) n += align_up(p.n_bytes);
  return whole_pages(n);
}

Uploads::Uploads(Transfer& from, Device& device, int64_t ring_bytes)
    : from_(from),
      device_(device),
      memory_(allocate_on(device, ring_bytes)),
      ring_(memory_.get(), whole_pages(ring_bytes)) {
  check<BudgetError>(memory_ != nullptr, "device",
                     std::to_string(device.size_bytes()) + " bytes, expected at least the " +
                         std::to_string(ring_bytes) + " of a ring there");
}

Uploads::~Uploads() { wait_for_copies(); }

void Uploads::wait_for_copies() {
  if (n_taken_ > 0) device_.wait(items_[n_taken_ - 1].event);
}

void Uploads::begin(std::vector<ReadJob> jobs) {
  wait_for_copies();
  std::vector<ReadJob> reads = jobs;
  for (ReadJob& j : reads) j.to = j.to_device ? nullptr : j.to;
  from_.begin(std::move(reads));
  ring_.clear();
  jobs_ = std::move(jobs);
  items_.assign(jobs_.size(), Item{});
  n_taken_ = n_given_ = n_back_ = oldest_ = 0;
}

// Places in the host's ring go back in the order they were taken.
void Uploads::give_back_host() {
  for (; n_back_ < n_taken_; ++n_back_) {
    const Item& item = items_[n_back_];
    if (!(jobs_[n_back_].to_device ? device_.has_come(item.event) : item.host_done)) return;
    from_.release_oldest();
  }
}

// The next job's read, waited for, and its copy, begun. false: no room on the device yet.
bool Uploads::take() {
  const ReadJob& job = jobs_[n_taken_];
  Item& item = items_[n_taken_];
  // Events come in order, so one that needs none has that of the job before.
  item.event = n_taken_ > 0 ? items_[n_taken_ - 1].event : 0;
  uint8_t* to = nullptr;
  if (job.to_device) {
    to = job.to != nullptr ? job.to : ring_.take(room_for(job));
    if (to == nullptr) return false;
  }
  item.at = from_.next();
  for (size_t p = 0; job.to_device && p < job.parts.size(); ++p) {
    const int64_t n = job.parts[p].n_bytes;
    if (n == 0) continue;
    item.event = device_.copy(to, item.at[p], n);
    item.at[p] = to;
    to += align_up(n);
  }
  ++n_taken_;
  return true;
}

Uploads::Pointers Uploads::next() {
  check<ArgumentError>(n_given_ < jobs_.size(), "device", "no job is left of those announced");
  give_back_host();
  if (n_given_ == n_taken_) {
    wait_for_copies();  // or the host's ring may have no room for what is needed now
    give_back_host();
    check<BudgetError>(take(), "device",
                       "no room for " + std::to_string(room_for(jobs_[n_taken_])) + " bytes in a ring of " +
                           std::to_string(ring_.size()) +
                           ", of which some may be held; expected a larger ring");
  }
  while (n_taken_ < jobs_.size() && from_.next_is_there() && take()) {
  }
  const Item& item = items_[n_given_];
  if (!device_.has_come(item.event)) {
    const auto begin = std::chrono::steady_clock::now();
    device_.wait(item.event);
    stall_s_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }
  ++n_given_;
  give_back_host();
  return item.at;
}

void Uploads::release_oldest() {
  while (oldest_ < n_given_ && jobs_[oldest_].to_device && jobs_[oldest_].to != nullptr) ++oldest_;
  check<ArgumentError>(oldest_ < n_given_, "device", "nothing was given out that could be released");
  if (jobs_[oldest_].to_device) {
    ring_.give_back_oldest();
  } else {
    items_[oldest_].host_done = true;
  }
  ++oldest_;
  give_back_host();
}

}  // namespace smezo
