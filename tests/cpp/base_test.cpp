// base: the pool hands out every item once and survives exceptions; names and bytes of stored types; choice
// of instruction set.
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "base/background.h"
#include "base/cpu.h"
#include "base/dtype.h"
#include "base/error.h"
#include "base/threads.h"
#include "test.h"

using namespace smezo;

namespace {
// Sets an environment variable for one scope.
struct Env {
  const char* name;
  std::string before;
  bool was_set;
  Env(const char* n, const char* value) : name(n) {
    const char* old = std::getenv(n);
    was_set = old != nullptr;
    if (was_set) before = old;
    value ? setenv(n, value, 1) : unsetenv(n);
  }
  ~Env() { was_set ? setenv(name, before.c_str(), 1) : unsetenv(name); }
};
}  // namespace

TEST(pool_runs_every_item_once) {
  for (int n_threads : {1, 2, 3, 8}) {
    ThreadPool pool(n_threads);
    CHECK(pool.size() == n_threads);
    for (int64_t n : {0, 1, 2, 3, 7, 100, 10000}) {
      std::vector<std::atomic<int>> hits(static_cast<size_t>(n));
      std::atomic<int> bad_thread{0};
      pool.run(n, [&](int64_t item, int thread) {
        if (thread < 0 || thread >= n_threads) ++bad_thread;
        ++hits[static_cast<size_t>(item)];
      });
      bool once = true;
      for (const auto& h : hits) once = once && h.load() == 1;
      CHECK(once);
      CHECK(bad_thread.load() == 0);
    }
  }
}

TEST(pool_hands_items_out_in_order) {
  ThreadPool pool(3);
  std::vector<std::vector<int64_t>> seen(3);
  pool.run(5000, [&](int64_t item, int thread) { seen[static_cast<size_t>(thread)].push_back(item); });
  for (const auto& items : seen)
    for (size_t i = 1; i < items.size(); ++i) CHECK(items[i] > items[i - 1]);
}

TEST(pool_uses_its_threads) {
  ThreadPool pool(2);
  std::mutex lock;
  std::set<std::thread::id> ids;
  std::atomic<int> arrived{0};
  // Each of the two items waits for the other, so one thread alone cannot finish.
  pool.run(2, [&](int64_t, int) {
    ++arrived;
    const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (arrived.load() < 2 && std::chrono::steady_clock::now() < give_up) std::this_thread::yield();
    const std::lock_guard<std::mutex> hold(lock);
    ids.insert(std::this_thread::get_id());
  });
  CHECK(ids.size() == 2);
}

TEST(pool_tiny_runs_stress) {
  for (int n_threads : {2, 3, 5}) {
    ThreadPool pool(n_threads);
    int64_t wrong = 0;
    for (int round = 0; round < 10000; ++round) {
      std::atomic<int64_t> sum{0};
      const int64_t n = round % 6;
      pool.run(n, [&](int64_t item, int) { sum += item + 1; });
      wrong += sum.load() != n * (n + 1) / 2;
      if (round % 1000 == 0)
        std::this_thread::sleep_for(std::chrono::milliseconds(1));  // lets workers fall asleep
    }
    CHECK(wrong == 0);
  }
}

TEST(pool_memory_written_by_bodies_is_seen) {
  ThreadPool pool(3);
  std::vector<int64_t> plain(64);
  int64_t wrong = 0;
  for (int64_t round = 0; round < 2000; ++round) {
    pool.run(64, [&](int64_t item, int) { plain[static_cast<size_t>(item)] = round * 64 + item; });
    for (int64_t i = 0; i < 64; ++i) wrong += plain[static_cast<size_t>(i)] != round * 64 + i;
  }
  CHECK(wrong == 0);
}

TEST(pool_rethrows_the_first_exception_and_lives_on) {
  for (int n_threads : {1, 2, 4}) {
    ThreadPool pool(n_threads);
    for (int round = 0; round < 200; ++round) {
      std::atomic<int> inside{0};
      CHECK_THROWS(std::runtime_error, "item 5", pool.run(1000, [&](int64_t item, int) {
        ++inside;
        if (item == 5) {
          --inside;
          throw std::runtime_error("item 5");
        }
        --inside;
      }));
      CHECK(inside.load() == 0);
    }
    std::atomic<int> n{0};
    pool.run(100, [&](int64_t, int) { ++n; });
    CHECK(n.load() == 100);
  }
}

TEST(pool_stops_handing_out_after_an_exception) {
  ThreadPool pool(1);
  int n = 0;
  CHECK_THROWS(std::runtime_error, "stop", pool.run(1000, [&](int64_t item, int) {
    ++n;
    if (item == 3) throw std::runtime_error("stop");
  }));
  CHECK(n == 4);
}

TEST(pool_refuses_a_run_inside_a_run) {
  ThreadPool pool(2);
  const auto nothing = [](int64_t, int) {};
  CHECK_THROWS(ArgumentError, "inside a run", pool.run(4, [&](int64_t, int) { pool.run(1, nothing); }));
  pool.run(4, nothing);
}

TEST(pool_refuses_sizes_out_of_range) {
  CHECK_THROWS(ArgumentError, "0 threads", ThreadPool(0));
  CHECK_THROWS(ArgumentError, "expected 1 to 1024", ThreadPool(1025));
}

TEST(default_threads_follows_the_environment) {
  {
    Env env("SMEZO_THREADS", "3");
    CHECK(default_threads() == 3);
  }
  for (const char* bad : {"0", "-2", "two", "3x", "1025"}) {
    Env env("SMEZO_THREADS", bad);
    CHECK_THROWS(ArgumentError, bad, default_threads());
  }
  Env env("SMEZO_THREADS", nullptr);
  CHECK(default_threads() >= 1);
}

TEST(dtype_names_and_bytes) {
  CHECK(dtype_bytes(DType::F32) == 4);
  CHECK(dtype_bytes(DType::F16) == 2);
  CHECK(dtype_bytes(DType::BF16) == 2);
  CHECK(dtype_bytes(DType::BF16T8) == 3);
  for (const char* name : {"F32", "F16", "BF16", "BF16T8"})
    CHECK(std::string(dtype_name(dtype_from_name(name))) == name);
  CHECK_THROWS(FormatError, "F8_E4M3", dtype_from_name("F8_E4M3"));
  CHECK_THROWS(FormatError, "F32, F16, BF16, BF16T8", dtype_from_name("f32"));
}

TEST(isa_choice) {
  {
    Env env("SMEZO_ISA", nullptr);
    CHECK(choose_isa() == supported_isas().back());
  }
  for (Isa isa : supported_isas()) {
    Env env("SMEZO_ISA", isa_name(isa));
    CHECK(choose_isa() == isa);
  }
  {
    Env env("SMEZO_ISA", "sse9");
    CHECK_THROWS(ArgumentError, "sse9", choose_isa());
    CHECK_THROWS(ArgumentError, "scalar, avx2, avx512, amx, neon", choose_isa());
  }
  for (Isa isa : {Isa::avx2, Isa::avx512, Isa::amx, Isa::neon}) {
    if (isa_supported(isa)) continue;
    Env env("SMEZO_ISA", isa_name(isa));
    CHECK_THROWS(ArgumentError, "not on this machine", choose_isa());
  }
}

TEST(isa_sets_agree_with_the_compiler_runtime) {
#if defined(__x86_64__)
  // libgcc's own detection: a second opinion.
  __builtin_cpu_init();
  CHECK(isa_supported(Isa::avx2) == (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")));
  CHECK(isa_supported(Isa::avx512) ==
        (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vbmi")));
#endif
  CHECK(isa_supported(Isa::scalar));
  CHECK(numerics_name(Isa::scalar) == "scalar");
  CHECK(numerics_name(Isa::avx512) == (cpu_features().avx512_bf16 ? "avx512-bf16" : "avx512"));
}

TEST(background_does_jobs_in_order) {
  Background b;
  std::vector<int> done;
  int64_t last = 0;
  for (int i = 0; i < 100; ++i) last = b.run([&done, i] { done.push_back(i); });
  b.wait(last);
  CHECK(b.is_over(last) && done.size() == 100 && std::is_sorted(done.begin(), done.end()));
  b.wait_for_all();
}

TEST(background_throws_once_asked_and_does_nothing_after) {
  Background b;
  std::atomic<int> n = 0;
  b.run([&] { ++n; });
  const int64_t bad = b.run([] { fail<IoError>("test", "no"); });
  const int64_t after = b.run([&] { ++n; });
  CHECK_THROWS(IoError, "no", b.wait(bad));
  CHECK_THROWS(IoError, "no", b.wait_for_all());
  CHECK(b.is_over(b.run([&] { ++n; })) && b.is_over(after) && n == 1);
  b.drop();
  b.run([&] { ++n; });
  b.wait_for_all();
  CHECK(n == 2);
}

TEST(background_that_is_dropped_or_ends_waits_for_what_runs) {
  std::atomic<bool> in = false, out = false;
  int n_later = 0;
  {
    Background b;
    for (int round = 0; round < 2; ++round) {
      in = out = false;
      b.run([&] {
        in = true;
        std::this_thread::sleep_for(std::chrono::milliseconds(30));
        out = true;
      });
      const int64_t later = b.run([&] { ++n_later; });
      while (!in) std::this_thread::yield();
      if (round == 1) break;
      b.drop();
      CHECK(out && b.is_over(later));
    }
  }
  CHECK(out && n_later == 0);
}

TEST_MAIN()
