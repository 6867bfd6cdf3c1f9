// Reading ahead with reads that are slow, short, refused or fail.
#include "store/transfer.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <deque>
#include <random>
#include <thread>
#include <vector>

#include "base/error.h"
#include "faulty_files.h"
#include "store/ring.h"
#include "test.h"

using namespace smezo;
using smezo_test::FaultyFiles;
using smezo_test::TemporaryFolder;

namespace {

constexpr int64_t kPage = RangeFile::kAlign;
using Bytes = std::vector<uint8_t>;

Bytes random_bytes(size_t n, unsigned seed) {
  std::mt19937 random(seed);
  Bytes out(n);
  for (uint8_t& b : out) b = static_cast<uint8_t>(random());
  return out;
}

struct Files {
  explicit Files(const std::string& name) : folder(name) {
    smezo_test::no_longer_than(240);
    for (const size_t n : {size_t{300000}, size_t{5}, size_t{16 * kPage}}) {
      content.push_back(random_bytes(n, static_cast<unsigned>(n)));
      paths.push_back(folder.path() + "/" + std::to_string(n));
      write_atomically(paths.back(), std::string(content.back().begin(), content.back().end()));
    }
  }
  TemporaryFolder folder;
  std::vector<Bytes> content;
  std::vector<std::string> paths;
};

struct Memory {
  explicit Memory(int64_t n) : at(static_cast<uint8_t*>(std::aligned_alloc(kPage, static_cast<size_t>(n)))) {}
  ~Memory() { std::free(at); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  uint8_t* at;
};

ReadJob random_job(const Files& files, std::mt19937& random) {
  ReadJob job;
  for (ReadPart& p : job.parts) {
    if (random() % 4 == 0) continue;
    p.file = static_cast<int>(random() % files.content.size());
    const int64_t size = static_cast<int64_t>(files.content[static_cast<size_t>(p.file)].size());
    p.offset = static_cast<int64_t>(random() % static_cast<unsigned>(size));
    if (random() % 3 == 0) p.offset = p.offset / kPage * kPage;
    p.n_bytes = std::min<int64_t>(size - p.offset, 1 + random() % 30000);
    if (random() % 4 == 0)
      p.n_bytes = std::min<int64_t>(size - p.offset, 30000);  // often up to the file's end
  }
  if (job.parts[0].n_bytes == 0) job.parts[0] = {0, 17, 4000};
  return job;
}

bool same(const Files& files, const ReadJob& job, const Transfer::Pointers& at) {
  for (size_t p = 0; p < job.parts.size(); ++p) {
    const ReadPart& part = job.parts[p];
    if (part.n_bytes > 0 &&
        std::memcmp(at[p], files.content[static_cast<size_t>(part.file)].data() + part.offset,
                    static_cast<size_t>(part.n_bytes)) != 0)
      return false;
  }
  return true;
}

// Lists of random jobs, some into memory of their own, some of the ring's held while the next are waited for,
// some lists given up half way.
void go_through(const Files& files, unsigned seed, int n_readers, int n_lists,
                PageCache cache = PageCache::past) {
  std::mt19937 random(seed);
  constexpr int64_t kLargest = kMaxParts / 2 * (30000 / kPage + 2) * kPage;
  std::vector<std::unique_ptr<Memory>> own;  // outlives the readers that read into it
  Transfer transfer(files.paths, kLargest * (2 + random() % 4), n_readers, cache);
  for (int list = 0; list < n_lists; ++list) {
    std::vector<ReadJob> jobs;
    std::vector<std::unique_ptr<Memory>> mine;
    int64_t n_bytes = 0;
    for (unsigned i = 0; i < 1 + random() % 25; ++i) {
      jobs.push_back(random_job(files, random));
      if (random() % 4 == 0) {
        mine.push_back(std::make_unique<Memory>(Transfer::room_for(jobs.back())));
        jobs.back().to = mine.back()->at;
      }
      for (const ReadPart& p : jobs.back().parts) n_bytes += p.n_bytes;
    }
    transfer.begin({});  // those of the last list are counted
    const int64_t before = transfer.bytes_read();
    transfer.begin(jobs);
    own = std::move(mine);
    const size_t until = random() % 3 == 0 ? random() % jobs.size() : jobs.size();
    std::deque<std::pair<size_t, Transfer::Pointers>> held;
    const auto release = [&] {
      CHECK(same(files, jobs[held.front().first], held.front().second));
      held.pop_front();
      transfer.release_oldest();
    };
    for (size_t i = 0; i < until; ++i) {
      // One more of the largest always fits behind one that is held.
      if (held.size() == 1 && random() % 2) release();
      if (held.size() == 2) release(), release();
      if (!held.empty() && transfer.ring_bytes() < 3 * kLargest) release();
      const Transfer::Pointers at = transfer.next();
      CHECK(same(files, jobs[i], at));
      if (jobs[i].to == nullptr) held.push_back({i, at});
      if (held.size() == 2) release();
    }
    if (until == jobs.size()) CHECK(transfer.bytes_read() - before == n_bytes);
  }
}

}  // namespace

TEST(every_list_comes_out_whole_and_in_order) {
  const Files files("transfer_order");
  for (const int n_readers : {0, 1, 2, 4}) {
    for (unsigned seed = 0; seed < 8; ++seed) {
      const PageCache cache = seed < 6 ? PageCache::past : PageCache::through;
      FaultyFiles disk(seed);
      disk.direct_opens = seed % 3 != 2;
      disk.longest_delay_us = seed % 2 ? 300 : 0;
      disk.shortens = seed == 1 || seed == 4 || seed == 7 ? 0.3 : 0;
      disk.interrupts = seed == 3 || seed == 4 || seed == 7 ? 0.2 : 0;
      go_through(files, seed * 8 + static_cast<unsigned>(n_readers), n_readers, 12, cache);
      CHECK((disk.n_direct_reads() > 0) == (disk.direct_opens && cache == PageCache::past));
    }
  }
}

TEST(direct_reads_that_are_refused_go_the_other_way) {
  const Files files("transfer_refused");
  FaultyFiles disk(1);
  disk.direct_reads = false;  // opens so, does not read so
  go_through(files, 1, 2, 6);
  CHECK(disk.n_direct_reads() > 0);
}

// The answer to one question decides both how the file is opened and how it is read.
TEST(a_file_system_of_two_minds_is_read_all_the_same) {
  class TwoMinds final : public FileSystem {
   public:
    TwoMinds() : inner_(set_file_system(this)) {}
    ~TwoMinds() override { set_file_system(nullptr); }
    int open(const std::string& path, Open how) override {
      if (how == Open::direct && n_asked_++ % 2 == 1) return -EINVAL;
      const int handle = inner_->open(path, how == Open::direct ? Open::read : how);
      if (how == Open::direct) direct_ = handle;
      return handle;
    }
    int close(int handle) override {
      if (handle == direct_) direct_ = -1;
      return inner_->close(handle);
    }
    int64_t pread(int handle, void* to, int64_t n, int64_t at) override {
      if (handle == direct_ && (n % 512 != 0 || at % 512 != 0)) return -EINVAL;
      return inner_->pread(handle, to, n, at);
    }
    int64_t size(int handle) override { return inner_->size(handle); }
    int64_t pwrite(int, const void*, int64_t, int64_t) override { return -EROFS; }
    int sync(int) override { return -EROFS; }
    int truncate(int, int64_t) override { return -EROFS; }
    int lock(int) override { return -EROFS; }
    int map(int h, int64_t n, const uint8_t** at) override { return inner_->map(h, n, at); }
    void unmap(const uint8_t* at, int64_t n) override { inner_->unmap(at, n); }
    void dont_need(const uint8_t*, int64_t) override {}
    int rename(const std::string&, const std::string&) override { return -EROFS; }
    int remove(const std::string&) override { return -EROFS; }
    int make_folder(const std::string&) override { return -EROFS; }
    int sync_folder(const std::string&) override { return -EROFS; }
    int list(const std::string&, std::vector<std::string>*) override { return -EROFS; }
    int kind(const std::string& path) override { return inner_->kind(path); }
    int64_t free_bytes(const std::string&) override { return 0; }

   private:
    FileSystem* inner_;
    int n_asked_ = 0, direct_ = -1;
  };
  const Files files("transfer_minds");
  TwoMinds disk;
  const RangeFile file(files.paths[0]);
  const Memory memory(RangeFile::room_for(7, 10000));
  CHECK(std::memcmp(file.read(7, 10000, memory.at), files.content[0].data() + 7, 10000) == 0);
}

// Pages of a file that the page cache holds; -1: the system does not tell.
int64_t n_cached_pages(const std::string& path) {
  const int file = open(path.c_str(), O_RDONLY);
  const int64_t size = lseek(file, 0, SEEK_END);
  void* const at = mmap(nullptr, static_cast<size_t>(size), PROT_READ, MAP_SHARED, file, 0);
  std::vector<unsigned char> in_cache(static_cast<size_t>((size + kPage - 1) / kPage));
  int64_t n = -1;
  if (at != MAP_FAILED && mincore(at, static_cast<size_t>(size), in_cache.data()) == 0) {
    n = 0;
    for (const unsigned char c : in_cache) n += c & 1;
  }
  if (at != MAP_FAILED) munmap(at, static_cast<size_t>(size));
  close(file);
  return n;
}

void drop_pages(const std::string& path) {
  const int file = open(path.c_str(), O_RDONLY);
  fdatasync(file);  // dirty pages stay
  posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
  close(file);
}

TEST(reads_leave_the_page_cache_as_they_are_told) {
  const Files files("transfer_cache");
  const std::string& path = files.paths[0];
  const int64_t n_bytes = static_cast<int64_t>(files.content[0].size());
  drop_pages(path);
  const int64_t n_before = n_cached_pages(path);
  if (n_before != 0) {
    std::printf("  not run: %s\n", n_before < 0 ? "the system does not tell what its page cache holds"
                                                : "this file system keeps all in the page cache");
    return;
  }
  const Memory memory(RangeFile::room_for(0, n_bytes));
  const auto read_all_of = [&](const RangeFile& file) {
    CHECK(std::memcmp(file.read(3, n_bytes - 3, memory.at, 8), files.content[0].data() + 3,
                      static_cast<size_t>(n_bytes - 3)) == 0);
  };
  const RangeFile past(path), through(path, PageCache::through);
  CHECK(!through.direct());
  read_all_of(past);
  CHECK(n_cached_pages(path) == 0);
  read_all_of(through);
  const int64_t n_all = (n_bytes + kPage - 1) / kPage;
  CHECK(n_cached_pages(path) == n_all);
  uint8_t some[100];
  through.read_small(2 * kPage - 50, 100, some);
  CHECK(std::memcmp(some, files.content[0].data() + 2 * kPage - 50, 100) == 0);
  CHECK(n_cached_pages(path) == n_all);
}

TEST(a_failing_read_is_one_error_and_the_next_list_works) {
  const Files files("transfer_fail");
  for (const int n_readers : {0, 1, 2, 4}) {
    for (unsigned seed = 0; seed < 12; ++seed) {
      FaultyFiles disk(seed);
      disk.direct_opens = seed % 2;
      disk.longest_delay_us = 200;
      std::mt19937 random(seed);
      std::vector<ReadJob> jobs;
      for (int i = 0; i < 20; ++i) jobs.push_back(random_job(files, random));
      Transfer transfer(files.paths, int64_t{1} << 18, n_readers);
      for (int again = 0; again < 3; ++again) {
        disk.fail_at = 1 + static_cast<int64_t>(random() % 15);
        transfer.begin(jobs);
        std::string what;
        for (size_t i = 0; i < jobs.size() && what.empty(); ++i) {
          try {
            CHECK(same(files, jobs[i], transfer.next()));
            transfer.release_oldest();
          } catch (const IoError& e) {
            what = e.what();
          }
        }
        CHECK(what.find("cannot read '/tmp/smezo_transfer_fail") != std::string::npos);
        CHECK_THROWS(IoError, "cannot read", transfer.next());  // and says so again, rather than wait
        disk.fail_at = -1;
        transfer.begin({});  // reads in flight are over
        disk.failing = 0;
        transfer.begin(jobs);
        for (const ReadJob& job : jobs) {
          CHECK(same(files, job, transfer.next()));
          transfer.release_oldest();
        }
      }
    }
  }
}

TEST(a_file_cut_short_is_named) {
  Files files("transfer_short");
  for (const bool direct : {true, false}) {
    FaultyFiles disk(1);
    disk.direct_opens = direct;
    for (const int64_t size : {int64_t{0}, kPage, 2 * kPage - 100, 10 * kPage + 1}) {
      Transfer transfer(files.paths, int64_t{1} << 20, 2);
      File::open(files.paths[2], Open::edit).truncate(size);
      ReadJob job;
      job.parts[0] = {2, 100, 15 * kPage};
      transfer.begin({job});
      CHECK_THROWS(IoError, "/65536' is truncated", transfer.next());
      write_atomically(files.paths[2], std::string(files.content[2].begin(), files.content[2].end()));
    }
  }
}

// Nobody else can make room, so waiting would be for ever.
TEST(a_job_that_cannot_fit_is_an_error_and_no_wait) {
  const Files files("transfer_room");
  for (const int n_readers : {0, 1, 4}) {
    Transfer transfer(files.paths, 4 * kPage, n_readers);
    ReadJob small, large;
    small.parts[0] = {0, 0, 2 * kPage};
    large.parts[0] = {0, 0, 5 * kPage};
    transfer.begin({large});
    CHECK_THROWS(BudgetError, "20480 bytes", transfer.next());
    transfer.begin({small, small, small});
    CHECK(same(files, small, transfer.next()));
    CHECK(same(files, small, transfer.next()));
    CHECK_THROWS(BudgetError, "8192 bytes", transfer.next());  // two are held
    transfer.begin({small});
    CHECK(same(files, small, transfer.next()));
    CHECK_THROWS(ArgumentError, "no job is left", transfer.next());
  }
}

TEST(a_job_of_nothing) {
  const Files files("transfer_nothing");
  for (const int n_readers : {0, 2}) {
    Transfer transfer(files.paths, 4 * kPage, n_readers);
    ReadJob some, nothing;
    some.parts[0] = {0, 0, 2 * kPage};
    transfer.begin({some, nothing, some, nothing, nothing, some});
    for (int i = 0; i < 3; ++i) {
      CHECK(same(files, some, transfer.next()));
      if (i == 1) {
        transfer.next();
        transfer.next();
        for (int k = 0; k < 3; ++k) transfer.release_oldest();
      } else if (i == 0) {
        transfer.next();
        transfer.release_oldest();
        transfer.release_oldest();
      }
    }
  }
}

// Elements of old files lie anywhere; whoever gets them finds them aligned.
TEST(parts_are_aligned_to_their_elements) {
  const Files files("transfer_align");
  for (const bool direct : {true, false}) {
    FaultyFiles disk(1);
    disk.direct_opens = direct;
    Transfer transfer(files.paths, int64_t{1} << 20, 2);
    std::vector<ReadJob> jobs;
    for (int64_t offset = 4090; offset < 4102; ++offset) {
      ReadJob job;
      job.parts[0] = {0, offset, 9000};
      job.parts[1] = {0, offset + 3, 77};
      job.parts[0].align = 4, job.parts[1].align = 2;
      jobs.push_back(job);
    }
    transfer.begin(jobs);
    for (const ReadJob& job : jobs) {
      const Transfer::Pointers at = transfer.next();
      CHECK(same(files, job, at));
      CHECK(reinterpret_cast<uintptr_t>(at[0]) % 4 == 0 && reinterpret_cast<uintptr_t>(at[1]) % 2 == 0);
      transfer.release_oldest();
    }
  }
}

TEST(ending_while_reads_are_in_flight) {
  const Files files("transfer_end");
  for (int trial = 0; trial < 20; ++trial) {
    FaultyFiles disk(static_cast<uint64_t>(trial));
    disk.longest_delay_us = 2000;
    std::mt19937 random(static_cast<unsigned>(trial));
    Transfer transfer(files.paths, int64_t{1} << 18, 1 + trial % 4);
    std::vector<ReadJob> jobs;
    for (int i = 0; i < 10; ++i) jobs.push_back(random_job(files, random));
    transfer.begin(jobs);
    if (trial % 2) transfer.next();
  }
}

TEST_MAIN()
