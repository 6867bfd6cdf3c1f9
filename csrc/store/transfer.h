// Reader threads: jobs are read ahead in the order they were given, into a ring or where the job says.
#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "io/range_file.h"

namespace smezo {

struct ReadPart {
  int file = 0;
  int64_t offset = 0, n_bytes = 0;
  int32_t align = 1;  // of the bytes in memory, a power of two: files hold elements at any address
  bool read = true;   // false: room only
};
constexpr int kMaxParts = 6;

struct ReadJob {
  std::array<ReadPart, kMaxParts> parts;  // those of no bytes are not read
  uint8_t* to = nullptr;                  // room_for(job) bytes, aligned to a page; nullptr: the ring
  bool to_device = false;                 // of Uploads: `to`, or the ring, is there
};

class Transfer {
 public:
  using Pointers = std::array<uint8_t*, kMaxParts>;
  static int64_t room_for(const ReadJob& job);

  // Reads ahead as far as the ring has room. n_readers 0: `next` reads by itself, nothing is read ahead.
  Transfer(const std::vector<std::string>& paths, int64_t ring_bytes, int n_readers,
           PageCache cache = PageCache::past);
  ~Transfer();

  // An earlier list is given up; reads in flight are waited for.
  void begin(std::vector<ReadJob> jobs);
  // Waits for the next job. The pointers hold until release (ring) or for ever (job.to). IoError, which every
  // later call gives again until begin(); BudgetError where what is held leaves no room for it; ArgumentError
  // after the last.
  Pointers next();
  bool next_is_there() const;  // next() would neither wait nor fail
  void release_oldest();       // of the ring's jobs that next() gave out
  const RangeFile& file(int i) const;
  // Another file as number i (the next one, or one there is). An earlier list is given up.
  void set_file(int i, const std::string& path);
  int64_t bytes_read() const;
  int64_t bytes_given() const;  // of the jobs that next() gave out
  bool has_failed() const;      // next() would throw what a reader met with
  double stall_s() const;
  int64_t ring_bytes() const;

 private:
  struct State;
  std::unique_ptr<State> s_;
};

}  // namespace smezo
