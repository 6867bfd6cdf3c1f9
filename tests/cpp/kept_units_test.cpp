// Units that stay in memory from pass to pass.
#include "streamed_fixture.h"
#include "test.h"

using namespace smezo;
using namespace smezo_test;

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
// The address sanitizer keeps what is let go of for a while.
#if !defined(__SANITIZE_ADDRESS__)
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
#endif

TEST_MAIN()
