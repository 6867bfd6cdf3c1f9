// The streamed store against the resident one, byte for byte, over random rings, passes, limits and reads
// that are slow, short or fail.
#include <atomic>
#include <cstring>
#include <fstream>
#include <random>
#include <set>
#include <thread>

#include "base/cpu.h"
#include "base/error.h"
#include "checkpoint.h"
#include "faulty_files.h"
#include "format/codec.h"
#include "store/plan.h"
#include "store/store.h"
#include "test.h"

using namespace smezo;
using smezo_test::FaultyFiles;
using smezo_test::TemporaryFolder;

namespace {

struct Row {
  const char* name;
  const char* format;
  int64_t rows, cols, block;
  int64_t row_step;
};
// In byte order of their names. Columns that no block divides, last blocks that are short, vectors.
const std::vector<Row> kRows = {
    {"embed.weight", "BF16", 2000, 40, 0, 512},
    {"layers.0.a.weight", "F32", 301, 33, 0, 1},
    {"layers.0.b.weight", "F16", 257, 64, 0, 1},
    {"layers.0.c.weight", "BF16", 300, 100, 0, 16},
    {"layers.0.d.weight", "nf4", 200, 96, 64, 1},
    {"layers.0.e.weight", "nf4", 130, 50, 32, 1},
    {"layers.0.f.weight", "nf4-double", 400, 72, 64, 1},
    {"layers.0.g.weight", "nf4-double", 96, 130, 4096, 2},
    {"layers.0.h.weight", "int8", 333, 47, 0, 1},
    {"layers.0.norm.weight", "BF16", 1, 40, 0, 1},
    {"norm.weight", "F32", 1, 40, 0, 1},
};

struct Checkpoint {
  Checkpoint(const std::string& name, size_t shift) : folder(name) {
    smezo_test::no_longer_than(280);
    std::vector<smezo_test::Stored> tensors;
    unsigned seed = 1;
    for (const Row& r : kRows)
      smezo_test::add_tensor(tensors, r.name, r.format, r.rows, r.cols, r.block, seed++);
    std::mt19937 random(static_cast<unsigned>(shift));
    std::shuffle(tensors.begin(), tensors.end(), random);
    smezo_test::write_unpadded(folder.path() + "/model.safetensors", tensors, shift);
  }
  const std::string& path() const { return folder.path(); }
  TemporaryFolder folder;
};

std::vector<TensorRequest> requests(const std::set<uint32_t>& trained = {}) {
  std::vector<TensorRequest> out;
  for (const Row& r : kRows) {
    const uint32_t id = static_cast<uint32_t>(out.size());
    out.push_back({r.name, r.rows, r.cols, trained.count(id) > 0, r.row_step});
  }
  return out;
}

int64_t least_ring(const std::string& folder, const std::vector<TensorRequest>& all) {
  return least_ring_bytes(Base(folder, all), all);
}

int64_t address_rest(const void* p, int64_t align) {
  return static_cast<int64_t>(reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(align));
}

// Rows [row0, row0 + n) of two views of a tensor hold the same, and are aligned as kernels want them.
bool same_rows(const WeightView& a, const WeightView& b, int64_t row0, int64_t n) {
  if (a.dtype != b.dtype || a.rows != b.rows || a.cols != b.cols || a.tensor_id != b.tensor_id ||
      a.writable != b.writable)
    return false;
  const int64_t align = a.dtype == DType::NF4 ? 1 : a.dtype == DType::BF16T8 ? 2 : dtype_bytes(a.dtype);
  for (const WeightView* w : {&a, &b}) {
    if (address_rest(w->data, align) != 0 || address_rest(w->scales.absmax, 4) != 0) return false;
  }
  for (int64_t e = row0 * a.cols; e < (row0 + n) * a.cols; ++e) {
    const float x = decode_at(a, e), y = decode_at(b, e);
    if (std::memcmp(&x, &y, sizeof x) != 0) return false;
  }
  return true;
}

std::vector<Unit> units_of(const Store& store, uint32_t id, int64_t rows) {
  std::vector<Unit> out;
  for (int64_t row0 = 0; row0 < store.request(id).rows; row0 += rows)
    out.push_back({id, row0, std::min(rows, store.request(id).rows - row0)});
  return out;
}

// Some tensors in some order, each in units of what the store says, or less.
std::vector<Unit> random_pass(const Store& store, std::mt19937& random) {
  std::vector<Unit> out;
  for (unsigned i = 0; i < 1 + random() % 12; ++i) {
    const uint32_t id = static_cast<uint32_t>(random() % kRows.size());
    if (kRows[id].rows == 1) continue;
    const int64_t step = store.unit_step(id), most = store.unit_rows(id);
    const int64_t rows =
        random() % 4 == 0 && most > step ? std::max<int64_t>(most / 2 / step, 1) * step : most;
    for (const Unit& u : units_of(store, id, rows)) out.push_back(u);
  }
  return out;
}

// Goes through a pass as far as `until`, two units held at a time now and then; false: a read failed.
void go_through(Store& streamed, Store& resident, const std::vector<Unit>& pass, size_t until,
                std::mt19937& random) {
  streamed.begin_pass(pass);
  std::vector<std::pair<Unit, WeightView>> held;
  const auto release = [&] {
    const auto& [u, w] = held.front();
    CHECK(same_rows(w, resident.weight(u.tensor_id), u.row0, u.n_rows));
    streamed.release(u);
    held.erase(held.begin());
  };
  for (size_t i = 0; i < until; ++i) {
    held.push_back({pass[i], streamed.acquire(pass[i])});
    if (held.size() == 2 || random() % 2) release();
    if (held.size() == 2) release();
  }
  while (!held.empty() && random() % 8) release();
}

// All of a tensor, decoded.
std::vector<float> values_of(Store& store, uint32_t id, ThreadPool& pool) {
  std::vector<float> out(static_cast<size_t>(store.shape(id).n()));
  store.for_units(id, [&](const Unit& u, const WeightView& w) {
    pool.run(u.n_rows, [&](int64_t i, int) {
      const int64_t e = (u.row0 + i) * w.cols;
      kernels_for(Isa::scalar).decode(w, e, w.cols, out.data() + e);
    });
  });
  return out;
}

void compare_values(Store& a, Store& b, ThreadPool& pool) {
  for (uint32_t id = 0; id < kRows.size(); ++id) {
    const std::vector<float> x = values_of(a, id, pool), y = values_of(b, id, pool);
    CHECK(x.size() == y.size() && std::memcmp(x.data(), y.data(), x.size() * sizeof(float)) == 0);
  }
}

void compare_base_values(Store& a, Store& b, std::mt19937& random) {
  for (uint32_t id = 0; id < kRows.size(); ++id) {
    const int64_t n = kRows[id].rows * kRows[id].cols,
                  e0 = static_cast<int64_t>(random() % static_cast<unsigned>(n));
    const int64_t k = static_cast<int64_t>(random() % static_cast<unsigned>(n - e0 + 1));
    std::vector<float> x(static_cast<size_t>(k) + 1, 7.0f), y = x;
    a.base_values(id, e0, k, x.data());
    b.base_values(id, e0, k, y.data());
    CHECK(std::memcmp(x.data(), y.data(), x.size() * sizeof(float)) == 0);
  }
}

void compare_rows(Store& a, Store& b, std::mt19937& random) {
  for (const uint32_t id : {0u, 1u, 8u}) {
    std::set<int32_t> some;
    for (int i = 0; i < 20; ++i)
      some.insert(static_cast<int32_t>(random() % static_cast<unsigned>(kRows[id].rows)));
    const std::vector<int32_t> list(some.begin(), some.end());
    const RowViews x = a.rows(id, list), y = b.rows(id, list);
    for (const int32_t r : list) CHECK(same_rows(x.at(r), y.at(r), r, 1));
  }
}

StreamOptions options_of(int64_t ring, int n_readers) {
  StreamOptions o;
  o.budget_bytes = int64_t{1} << 24;
  o.ring_bytes = ring;
  o.n_readers = n_readers;
  return o;
}

}  // namespace

TEST(streamed_equals_resident) {
  for (unsigned seed = 0; seed < 10; ++seed) {
    std::mt19937 random(seed);
    const Checkpoint base("streamed_equals", seed % 5);
    FaultyFiles disk(seed);
    disk.direct_opens = seed % 3 != 0;
    disk.longest_delay_us = seed % 2 ? 100 : 0;
    disk.shortens = seed % 4 == 2 ? 0.2 : 0;
    std::set<uint32_t> trained;
    for (uint32_t id = 0; id < kRows.size() && seed % 2; ++id) {
      if (random() % 3 == 0) trained.insert(id);
    }
    const std::vector<TensorRequest> all = requests(trained);
    ThreadPool pool(2);
    const DType values = seed % 3 == 0 ? DType::BF16T8 : seed % 3 == 1 ? DType::F32 : DType::BF16;
    const auto resident = Store::open(base.path(), all, values, pool);
    const int64_t ring =
        least_ring(base.path(), all) * (seed % 2 ? 1 : 1 + static_cast<int64_t>(random() % 5));
    const int readers[] = {0, 1, 2, 4};
    StreamOptions options = options_of(ring, readers[seed % 4]);
    if (seed % 3 == 1) options.device_bytes = whole_pages(ring) + static_cast<int64_t>(random() % 300000);
    const auto streamed = Store::open_streamed(base.path(), all, values, options, pool);
    CHECK(streamed->fingerprint() == resident->fingerprint());
    CHECK(streamed->working_copy_bytes() >= resident->working_copy_bytes() - (int64_t{1} << 20));
    for (uint32_t id = 0; id < kRows.size(); ++id) {
      if (trained.count(id) || kRows[id].rows == 1)
        CHECK(same_rows(streamed->weight(id), resident->weight(id), 0, kRows[id].rows));
      else
        CHECK_THROWS(ArgumentError, "is streamed", streamed->weight(id));
    }
    for (int i = 0; i < 25; ++i) {
      const int64_t limit = random() % 3 == 0 ? 0 : static_cast<int64_t>(random() % 400000);
      streamed->set_resident_bytes(limit);
      CHECK(streamed->resident_bytes() <= limit);
      const std::vector<Unit> pass = random_pass(*streamed, random);
      go_through(*streamed, *resident, pass, random() % 4 ? pass.size() : random() % (pass.size() + 1),
                 random);
      CHECK(streamed->resident_bytes() <= limit);
      CHECK(streamed->device_bytes() <= options.device_bytes);
      if (random() % 4 == 0) compare_rows(*streamed, *resident, random);
      if (random() % 4 == 0) compare_base_values(*streamed, *resident, random);
    }
    compare_values(*streamed, *resident, pool);
  }
}

TEST(what_stays_is_not_read_again) {
  const Checkpoint base("streamed_stays", 1);
  const std::vector<TensorRequest> all = requests();
  ThreadPool pool(1);
  const auto store =
      Store::open_streamed(base.path(), all, DType::F32, options_of(least_ring(base.path(), all), 2), pool);
  const auto resident = Store::open(base.path(), all, DType::F32, pool);
  std::mt19937 random(1);
  std::vector<Unit> pass;
  for (uint32_t id = kRows.size();
       id-- > 0;) {  // what stays, the last ones, are large units of the embedding
    if (kRows[id].rows > 1)
      for (const Unit& u : units_of(*store, id, store->unit_rows(id))) pass.push_back(u);
  }
  const auto bytes_of_a_pass = [&] {
    const int64_t before = store->traffic().bytes_read;
    go_through(*store, *resident, pass, pass.size(), random);
    return store->traffic().bytes_read - before;
  };
  const int64_t whole = bytes_of_a_pass();
  CHECK(bytes_of_a_pass() == whole);
  store->set_resident_bytes(100000);
  CHECK(bytes_of_a_pass() == whole);
  const int64_t held = store->resident_bytes();
  CHECK(held > 50000 && held <= 100000);
  const int64_t less = bytes_of_a_pass();
  CHECK(less >= whole - held && less < whole - held / 2);
  store->set_resident_bytes(int64_t{1} << 24);
  bytes_of_a_pass();
  CHECK(bytes_of_a_pass() == 0);
  store->set_resident_bytes(0);
  CHECK(store->resident_bytes() == 0 && bytes_of_a_pass() == whole);
}

// Two cuts of a tensor: what stays of one is not taken for the other.
TEST(a_finer_cut_that_stays_is_not_taken_for_a_coarser_one) {
  const Checkpoint base("streamed_cuts", 0);
  const std::vector<TensorRequest> all = requests();
  ThreadPool pool(1);
  const auto store =
      Store::open_streamed(base.path(), all, DType::F32, options_of(int64_t{1} << 20, 1), pool);
  const auto resident = Store::open(base.path(), all, DType::F32, pool);
  std::mt19937 random(1);
  store->set_resident_bytes(int64_t{1} << 20);
  const std::vector<Unit> fine = units_of(*store, 1, 16), coarse = units_of(*store, 1, 80);
  for (const auto& pass : {fine, coarse, fine, coarse})
    go_through(*store, *resident, pass, pass.size(), random);
}

TEST(failed_reads_are_one_error_and_the_next_pass_works) {
  const Checkpoint base("streamed_fail", 3);
  const std::vector<TensorRequest> all = requests();
  for (unsigned seed = 0; seed < 12; ++seed) {
    std::mt19937 random(seed);
    FaultyFiles disk(seed);
    disk.direct_opens = seed % 2;
    ThreadPool pool(1);
    const auto resident = Store::open(base.path(), all, DType::F32, pool);
    const int readers[] = {0, 1, 2, 4};
    const auto streamed = Store::open_streamed(
        base.path(), all, DType::F32, options_of(least_ring(base.path(), all), readers[seed % 4]), pool);
    disk.longest_delay_us = 200;
    int n_failed = 0;
    for (int i = 0; i < 12; ++i) {
      streamed->set_resident_bytes(static_cast<int64_t>(random() % 300000));
      const std::vector<Unit> pass = random_pass(*streamed, random);
      disk.fail_at = 1 + static_cast<int64_t>(random() % 20);
      try {
        go_through(*streamed, *resident, pass, pass.size(), random);
      } catch (const IoError&) {
        ++n_failed;
      }
      disk.fail_at = -1;
      streamed->begin_pass({});
      disk.failing = 0;
      go_through(*streamed, *resident, pass, pass.size(), random);
    }
    CHECK(n_failed > 2);
  }
}

TEST(an_expected_pass_is_read_ahead_and_any_may_follow) {
  const Checkpoint base("streamed_expects", 1);
  const std::vector<TensorRequest> all = requests();
  ThreadPool pool(1);
  const auto resident = Store::open(base.path(), all, DType::F32, pool);
  FaultyFiles disk(1);
  const auto streamed =
      Store::open_streamed(base.path(), all, DType::F32, options_of(int64_t{1} << 19, 2), pool);
  std::mt19937 random(3);
  std::vector<Unit> pass;
  for (const uint32_t id : {1u, 6u, 0u})
    for (const Unit& u : units_of(*streamed, id, streamed->unit_rows(id))) pass.push_back(u);
  const auto reads = [&] {
    const int64_t before = disk.n_direct_reads();
    go_through(*streamed, *resident, pass, pass.size(), random);
    return disk.n_direct_reads() - before;
  };
  const int64_t n_reads = reads();
  streamed->expect_same_pass();
  const int64_t n_bytes = streamed->traffic().bytes_read;
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  CHECK(streamed->traffic().bytes_read == n_bytes);  // nothing was used yet
  CHECK(reads() < n_reads / 2);                      // most of it was there
  CHECK(streamed->traffic().bytes_read > n_bytes);
  for (int i = 0; i < 20; ++i) {
    streamed->expect_same_pass();
    streamed->set_resident_bytes(static_cast<int64_t>(random() % 200000));
    if (random() % 4 == 0) values_of(*streamed, 4, pool);
    const std::vector<Unit> other = random() % 2 ? pass : random_pass(*streamed, random);
    go_through(*streamed, *resident, other, other.size(), random);
  }
  // What it met with does not outlive it.
  streamed->set_resident_bytes(0);
  go_through(*streamed, *resident, pass, pass.size(), random);
  disk.fail_at = 1;
  streamed->expect_same_pass();
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  disk.fail_at = -1, disk.failing = 0;
  go_through(*streamed, *resident, pass, pass.size(), random);
}

// Readers write into what stays; a pass that is given up and a store that ends wait for them first.
TEST(what_stays_is_not_let_go_of_under_a_reader) {
  const Checkpoint base("streamed_under", 0);
  const std::vector<TensorRequest> all = requests();
  for (int trial = 0; trial < 6; ++trial) {
    FaultyFiles disk(1);
    ThreadPool pool(1);
    const auto resident = Store::open(base.path(), all, DType::F32, pool);
    auto streamed =
        Store::open_streamed(base.path(), all, DType::F32, options_of(least_ring(base.path(), all), 2), pool);
    streamed->set_resident_bytes(int64_t{1} << 24);
    std::mt19937 random(static_cast<unsigned>(trial));
    disk.shut();
    const std::vector<Unit> pass = units_of(*streamed, 3, streamed->unit_rows(3));
    streamed->begin_pass(pass);
    disk.wait_for_waiting(2);
    std::atomic<bool> over = false;
    std::thread later([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      CHECK(!over);
      disk.reopen();
    });
    if (trial % 3 == 0) {
      streamed->begin_pass(pass);
    } else if (trial % 3 == 1) {
      streamed->set_resident_bytes(0);
    } else {
      streamed.reset();
    }
    over = true;
    later.join();
    if (streamed) go_through(*streamed, *resident, pass, pass.size(), random);
  }
}

// What is let go of is the system's again, not the allocator's: the budget gives it to the next batch.
TEST(memory_of_what_stayed_is_given_back) {
#if defined(__SANITIZE_THREAD__)
  std::printf("  not run: thread sanitizer keeps memory beside the program's\n");
  return;
#endif
  const TemporaryFolder folder("streamed_memory");
  std::vector<smezo_test::Stored> tensors;
  smezo_test::add_tensor(tensors, "a", "F32", 8192, 1024);
  smezo_test::write_unpadded(folder.path() + "/model.safetensors", tensors, 0);
  tensors.clear();
  const auto resident_bytes = [] {
    int64_t size = 0, resident = 0;
    std::ifstream("/proc/self/statm") >> size >> resident;
    return resident * 4096;
  };
  ThreadPool pool(1);
  for (const int64_t ring : {int64_t{1} << 20, int64_t{8} << 20}) {  // units of 0.1 and 1 MiB
    const auto store =
        Store::open_streamed(folder.path(), {{"a", 8192, 1024}}, DType::F32, options_of(ring, 1), pool);
    const std::vector<Unit> pass = units_of(*store, 0, store->unit_rows(0));
    std::vector<std::unique_ptr<char[]>> others;  // what an allocator would find between the units
    const auto go = [&] {
      store->begin_pass(pass);
      for (const Unit& u : pass) {
        store->acquire(u);
        store->release(u);
        others.push_back(std::make_unique<char[]>(100));
      }
    };
    go();
    const int64_t before = resident_bytes();
    for (int i = 0; i < 3; ++i) {
      store->set_resident_bytes(int64_t{64} << 20);
      go();
      const int64_t held = store->resident_bytes();
      CHECK(held > (int64_t{31} << 20));
      CHECK(resident_bytes() - before <= held + (int64_t{1} << 20));
      store->set_resident_bytes(0);
      CHECK(resident_bytes() - before <= int64_t{1} << 20);
    }
  }
}

TEST(units_are_announced_as_they_are_acquired) {
  const Checkpoint base("streamed_order", 0);
  const std::vector<TensorRequest> all = requests();
  ThreadPool pool(1);
  const auto store =
      Store::open_streamed(base.path(), all, DType::F32, options_of(int64_t{1} << 20, 1), pool);
  store->begin_pass({{1, 0, 16}, {1, 16, 16}});
  CHECK_THROWS(ArgumentError, "was not announced next", store->acquire({1, 16, 16}));
  CHECK_THROWS(ArgumentError, "was not announced next", store->acquire({1, 0, 32}));
  store->acquire({1, 0, 16});
  store->acquire({1, 16, 16});
  CHECK_THROWS(ArgumentError, "was not announced next", store->acquire({1, 32, 16}));
  CHECK_THROWS(ArgumentError, "row 3 was not asked for", store->rows(0, {1, 5}).at(3));
  CHECK_THROWS(FormatError, "is NF4", store->rows(4, {1}));
}

TEST(a_ring_too_small_is_refused_and_the_least_goes_through) {
  for (size_t shift = 0; shift < 4; ++shift) {
    const Checkpoint base("streamed_least", shift);
    const std::vector<TensorRequest> all = requests();
    ThreadPool pool(1);
    const auto resident = Store::open(base.path(), all, DType::F32, pool);
    const int64_t least = least_ring(base.path(), all);
    CHECK_THROWS(BudgetError, "three units of 'embed.weight'",
                 Store::open_streamed(base.path(), all, DType::F32, options_of(least - 4096, 1), pool));
    CHECK_THROWS(BudgetError, "a ring of 4096 bytes",
                 Store::open_streamed(base.path(), all, DType::F32, options_of(1, 1), pool));
    const auto store = Store::open_streamed(base.path(), all, DType::F32, options_of(least, 2), pool);
    std::mt19937 random(1);
    for (int i = 0; i < 10; ++i) {
      const std::vector<Unit> pass = random_pass(*store, random);
      go_through(*store, *resident, pass, pass.size(), random);
    }
    CHECK(ring_bytes_for(options_of(0, 1), Base(base.path(), all), all) >= least);
  }
}

TEST_MAIN()
