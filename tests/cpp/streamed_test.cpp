// The streamed store against the resident one, byte for byte, over random rings, passes, limits and reads
// that are slow, short or fail.
#include "streamed_fixture.h"
#include "test.h"

using namespace smezo;
using namespace smezo_test;

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
