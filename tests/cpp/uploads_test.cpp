// The way to a device: what comes out, when copies begin, what each ring holds.
#include "store/uploads.h"

#include <cstring>
#include <deque>
#include <random>
#include <thread>

#include "base/error.h"
#include "faulty_files.h"
#include "test.h"

using namespace smezo;
using smezo_test::FaultyFiles;
using smezo_test::TemporaryFolder;

namespace {

constexpr int64_t kFileBytes = 300000, kLargest = 32768;

struct Source {
  explicit Source(const std::string& name) : folder(name), path(folder.path() + "/f") {
    smezo_test::no_longer_than(120);
    std::mt19937 random(1);
    for (int64_t i = 0; i < kFileBytes; ++i) content.push_back(static_cast<char>(random()));
    write_atomically(path, content);
  }
  bool same(const ReadJob& job, const Transfer::Pointers& at) const {
    for (size_t p = 0; p < job.parts.size(); ++p) {
      const ReadPart& part = job.parts[p];
      if (part.n_bytes > 0 &&
          std::memcmp(at[p], content.data() + part.offset, static_cast<size_t>(part.n_bytes)) != 0)
        return false;
    }
    return true;
  }
  TemporaryFolder folder;
  std::string path, content;
};

ReadJob job_at(int64_t offset, int64_t n_bytes) {
  ReadJob job;
  job.parts[0] = {0, offset, n_bytes};
  job.to_device = true;
  return job;
}

// Copies when it is waited for, or when the test says.
class ManualDevice final : public Device {
 public:
  uint8_t* allocate(int64_t n_bytes) override {
    blocks_.emplace_back(static_cast<size_t>(n_bytes) + kPageBytes);
    const uintptr_t at = reinterpret_cast<uintptr_t>(blocks_.back().data());
    return reinterpret_cast<uint8_t*>((at + kPageBytes - 1) / kPageBytes * kPageBytes);
  }
  void free(uint8_t*) override {}
  int64_t size_bytes() const override { return int64_t{1} << 30; }
  int64_t used_bytes() const override { return 0; }
  int64_t peak_bytes() const override { return 0; }
  Event copy(uint8_t* to, const uint8_t* from, int64_t n_bytes) override {
    asked.push_back({to, from, n_bytes});
    return static_cast<Event>(asked.size());
  }
  bool has_come(Event event) const override { return static_cast<Event>(n_done) >= event; }
  void wait(Event event) override {
    while (!has_come(event)) copy_one();
  }
  void copy_one() {
    const Copy& c = asked[n_done++];
    std::memcpy(c.to, c.from, static_cast<size_t>(c.n_bytes));
  }
  struct Copy {
    uint8_t* to;
    const uint8_t* from;
    int64_t n_bytes;
  };
  std::vector<Copy> asked;
  size_t n_done = 0;

 private:
  std::deque<std::vector<uint8_t>> blocks_;
};

// Waits until readers have read what they can.
void settle(const Transfer& t) {
  for (int64_t before = -1; before != t.bytes_read();) {
    before = t.bytes_read();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

}  // namespace

TEST(what_comes_out_is_what_was_read) {
  const Source file("uploads_all");
  for (unsigned seed = 0; seed < 12; ++seed) {
    std::mt19937 random(seed);
    FaultyFiles disk(seed);
    disk.longest_delay_us = seed % 2 ? 200 : 0;
    const int64_t room = kLargest + 4 * kPageBytes;
    Transfer transfer({file.path}, room * (3 + random() % 3), static_cast<int>(seed % 3));
    const auto device = make_fake_device(int64_t{1} << 20, seed % 2 ? 200'000'000 : 0);
    const int64_t ring = room * (3 + random() % 2);
    std::vector<DeviceMemory> own;
    Uploads uploads(transfer, *device, ring);
    CHECK(device->used_bytes() == whole_pages(ring));
    for (int list = 0; list < 8; ++list) {
      std::vector<ReadJob> jobs;
      uploads.begin({});
      own.clear();
      for (unsigned i = 0; i < 1 + random() % 30; ++i) {
        ReadJob job;
        const int64_t n = 1 + static_cast<int64_t>(random() % kLargest),
                      offset = static_cast<int64_t>(random() % static_cast<unsigned>(kFileBytes - n));
        job = job_at(offset, n / 2 + 1);
        job.parts[1] = {0, offset + n / 2, n - n / 2, 4};
        job.to_device = random() % 3 != 0;
        if (job.to_device && random() % 4 == 0) {
          own.push_back(allocate_on(*device, Uploads::room_for(job)));
          job.to = own.back().get();
          if (job.to == nullptr) own.pop_back();
        }
        jobs.push_back(job);
      }
      CHECK(device->peak_bytes() <= device->size_bytes());
      uploads.begin(jobs);
      const size_t until = random() % 3 == 0 ? random() % jobs.size() : jobs.size();
      std::deque<std::pair<size_t, Transfer::Pointers>> held;
      const auto release = [&] {
        CHECK(file.same(jobs[held.front().first], held.front().second));
        held.pop_front();
        uploads.release_oldest();
      };
      std::vector<std::pair<size_t, Transfer::Pointers>> kept;
      for (size_t i = 0; i < until; ++i) {
        const Transfer::Pointers at = uploads.next();
        CHECK(file.same(jobs[i], at));
        if (jobs[i].to_device && jobs[i].to != nullptr) {
          CHECK(at[0] == jobs[i].to);
          kept.emplace_back(i, at);
        } else {
          held.emplace_back(i, at);
        }
        if (!held.empty() && (held.size() == 2 || random() % 2)) release();
      }
      for (const auto& [i, at] : kept) CHECK(file.same(jobs[i], at));
    }
  }
}

TEST(copies_of_later_jobs_begin_while_one_is_used) {
  const Source file("uploads_ahead");
  FaultyFiles disk(1);
  ManualDevice device;
  Transfer transfer({file.path}, 8 * 8192, 1);
  Uploads uploads(transfer, device, 3 * 8192);
  std::vector<ReadJob> jobs;
  for (int i = 0; i < 8; ++i) jobs.push_back(job_at(8192 * i, 8192));
  uploads.begin(jobs);
  settle(transfer);
  CHECK(transfer.bytes_read() == 8 * 8192);
  CHECK(device.asked.empty());
  uploads.next();
  // As many as the ring there has room for; only what is used was waited for.
  CHECK(device.asked.size() == 3 && device.n_done == 1);
  uploads.next();
  CHECK(device.asked.size() == 3 && device.n_done == 2);
  uploads.release_oldest();
  uploads.next();
  CHECK(device.asked.size() == 4 && device.n_done == 3);
}

TEST(the_hosts_ring_is_given_back_when_the_copy_has_come) {
  const Source file("uploads_host");
  FaultyFiles disk(1);
  ManualDevice device;
  Transfer transfer({file.path}, 2 * 8192, 1);  // two at a time
  Uploads uploads(transfer, device, 8 * 8192);
  std::vector<ReadJob> jobs;
  for (int i = 0; i < 6; ++i) jobs.push_back(job_at(8192 * i, 8192));
  uploads.begin(jobs);
  settle(transfer);
  CHECK(transfer.bytes_read() == 2 * 8192);
  uploads.next();  // its place is free, that of the second is not: its copy is under way
  CHECK(device.asked.size() == 2 && device.n_done == 1);
  settle(transfer);
  CHECK(transfer.bytes_read() == 3 * 8192);
  device.copy_one();
  uploads.next();
  settle(transfer);
  CHECK(transfer.bytes_read() == 4 * 8192);
}

TEST(a_failed_read_is_one_error_when_its_turn_comes) {
  const Source file("uploads_fails");
  FaultyFiles disk(1);
  ManualDevice device;
  Transfer transfer({file.path}, 8 * 8192, 1);
  Uploads uploads(transfer, device, 8 * 8192);
  const std::vector<ReadJob> jobs = {job_at(0, 8192), job_at(kFileBytes, 8192), job_at(8192, 8192)};
  for (int i = 0; i < 2; ++i) {
    uploads.begin(jobs);
    settle(transfer);
    CHECK_THROWS(IoError, "", uploads.next(); uploads.next());
    CHECK_THROWS(IoError, "", uploads.next());
  }
  uploads.begin({jobs[0]});
  CHECK(file.same(jobs[0], uploads.next()));
}

TEST(a_device_too_small_is_refused) {
  const Source file("uploads_small");
  Transfer transfer({file.path}, 8192, 1);
  const auto device = make_fake_device(16384);
  CHECK_THROWS(BudgetError, "expected at least the 20480", Uploads(transfer, *device, 20480));
  Uploads uploads(transfer, *device, 8192);
  CHECK(device->used_bytes() == 8192 && device->allocate(12288) == nullptr);
  uint8_t x = 0;
  CHECK_THROWS(ArgumentError, "not its own", device->copy(&x, &x, 1));
}

TEST_MAIN()
