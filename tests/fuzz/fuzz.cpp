// Feeds the readers what they must refuse: changed valid files, kept where they reach something new.
//
//   fuzz [executions of each reader] [part of a target's name] [seed] [folder for findings]
//
// The same arguments give the same inputs. A finding is a crash, an error of a sanitizer, an exception that
// is not the library's, more memory than the input justifies, or ten seconds of the processor's for one
// input. The input is written to the folder, and the run ends.
#include <sys/time.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <random>

#include "base/error.h"
#include "coverage.h"
#include "targets.h"

using namespace smezo_fuzz;

namespace {

constexpr size_t kLongest = 1 << 14;
constexpr int64_t kFreeBytes = 4 << 20;  // of buffers that do not depend on the input
constexpr int kHangSeconds = 10;

const Bytes* in_hand = nullptr;
std::string finding_path;

void keep_finding() {
  if (in_hand == nullptr) return;
  std::ofstream(finding_path, std::ios::binary)
      .write(reinterpret_cast<const char*>(in_hand->data()), static_cast<std::streamsize>(in_hand->size()));
  std::fprintf(stderr, "the input is in %s\n", finding_path.c_str());
  in_hand = nullptr;
}
void on_signal(int number) {
  std::fprintf(stderr, "signal %d%s\n", number, number == SIGPROF ? ": a hang" : "");
  keep_finding();
  std::_Exit(1);
}
// Of the processor's time: a machine that is busy with something else is no hang. 0: no longer.
void expect_an_end_within(int seconds) {
  const itimerval t = {{0, 0}, {seconds, 0}};
  setitimer(ITIMER_PROF, &t, nullptr);
}
[[noreturn]] void found(const char* what) {
  std::fprintf(stderr, "%s\n", what);
  keep_finding();
  std::_Exit(1);
}

class Mutator {
 public:
  explicit Mutator(uint64_t seed) : random_(seed) {}
  size_t below(size_t n) { return n == 0 ? 0 : random_() % n; }

  Bytes change(const Bytes& from, const Bytes& other) {
    Bytes b = from;
    for (size_t n = size_t{1} << below(4); n > 0; --n) once(b, other);
    if (b.size() > kLongest) b.resize(kLongest);
    return b;
  }

 private:
  void once(Bytes& b, const Bytes& other) {
    static const char* const words[] = {"\"",
                                        "{",
                                        "}",
                                        "[",
                                        "]",
                                        ",",
                                        ":",
                                        "-",
                                        "0",
                                        "18446744073709551616",
                                        "1e999",
                                        "null",
                                        "\\u0000",
                                        "9223372036854775807",
                                        "-1",
                                        "..",
                                        "/",
                                        "F32",
                                        "BF16",
                                        "I64",
                                        "__metadata__",
                                        "data_offsets",
                                        "shape",
                                        "\xff",
                                        "\xed\xa0\x80"};
    const size_t at = below(b.size() + 1);
    const auto position = b.begin() + static_cast<std::ptrdiff_t>(at);
    switch (below(9)) {
      case 0:
        if (at < b.size()) b[at] ^= static_cast<uint8_t>(1 << below(8));
        break;
      case 1:
        if (at < b.size()) b[at] = static_cast<uint8_t>(random_());
        break;
      case 2: {  // a field of 4 or 8 bytes
        static const uint64_t values[] = {
            0, 1, 0x7fffffff, 0x80000000, 0xffffffff, 0x7fffffffffffffff, ~uint64_t{0}, 64};
        const uint64_t v = values[below(8)];
        const size_t n = below(2) ? 4 : 8;
        if (at + n <= b.size()) std::memcpy(&b[at], &v, n);
        break;
      }
      case 3:
        b.erase(position, b.begin() + static_cast<std::ptrdiff_t>(std::min(b.size(), at + 1 + below(8))));
        break;
      case 4: {
        const char* const w = words[below(std::size(words))];
        b.insert(position, w, w + std::strlen(w));
        break;
      }
      case 5: {  // a piece of its own, elsewhere
        const size_t a = below(b.size()), n = std::min(b.size() - a, 1 + below(32));
        const Bytes piece(b.begin() + static_cast<std::ptrdiff_t>(a),
                          b.begin() + static_cast<std::ptrdiff_t>(a + n));
        b.insert(position, piece.begin(), piece.end());
        break;
      }
      case 6: {  // the end of another
        const size_t a = below(other.size() + 1);
        b.resize(at);
        b.insert(b.end(), other.begin() + static_cast<std::ptrdiff_t>(a), other.end());
        break;
      }
      case 7:  // a digit
        for (size_t i = at; i < b.size(); ++i) {
          if (b[i] < '0' || b[i] > '9') continue;
          b[i] = static_cast<uint8_t>('0' + below(10));
          break;
        }
        break;
      default:
        b.resize(at);
    }
  }
  std::mt19937_64 random_;
};

void run(const Target& t, const Bytes& input) {
  in_hand = &input;
  count_memory(true);
  try {
    t.read(input);
  } catch (const smezo::Error&) {
  } catch (const std::exception& e) {
    found(e.what());
  }
  count_memory(false);
  if (most_memory() > kFreeBytes + t.memory_per_byte * static_cast<int64_t>(input.size())) {
    std::fprintf(stderr, "%ld bytes of memory for %zu of input\n", static_cast<long>(most_memory()),
                 input.size());
    found("too much memory");
  }
  in_hand = nullptr;
}

void fuzz(const Target& t, int64_t n_executions, uint64_t seed) {
  using clock = std::chrono::steady_clock;
  Mutator mutator(seed);
  forget_all_edges();
  std::vector<Bytes> corpus = t.seeds;
  for (const Bytes& s : corpus) {
    forget_edges();
    run(t, s);
    new_edges();
  }
  const auto begin = clock::now();
  for (int64_t n = 0; n < n_executions; ++n) {
    if (n % 1024 == 0) expect_an_end_within(kHangSeconds);
    const Bytes *from = &corpus[mutator.below(corpus.size())], *other = &corpus[mutator.below(corpus.size())];
    if (other->size() < from->size() && mutator.below(4)) std::swap(from, other);  // short ones are fast
    Bytes input = mutator.change(*from, *other);
    if (t.repair && mutator.below(4)) t.repair(input);
    forget_edges();
    run(t, input);
    if (new_edges()) corpus.push_back(std::move(input));
  }
  expect_an_end_within(0);
  const double seconds = std::chrono::duration<double>(clock::now() - begin).count();
  std::printf("%-16s %10ld executions, %6zu edges, corpus %5zu, %.0f s\n", t.name.c_str(),
              static_cast<long>(n_executions), n_edges(), corpus.size(), seconds);
  std::fflush(stdout);
}

}  // namespace

#if defined(__SANITIZE_ADDRESS__)
extern "C" void __sanitizer_set_death_callback(void (*)());
// Stacks of allocations, most of them through code without frame pointers, are never the same twice: kept,
// they slow the run down more and more.
extern "C" __attribute__((visibility("default"))) const char* __asan_default_options() {
  return "malloc_context_size=0:quarantine_size_mb=8";
}
#endif

int main(int argc, char** argv) {
  const int64_t n_executions = argc > 1 ? std::atoll(argv[1]) : 100'000;
  const char* const part = argc > 2 ? argv[2] : "";
  const uint64_t seed = argc > 3 ? std::strtoull(argv[3], nullptr, 10) : 1;
  finding_path = std::string(argc > 4 ? argv[4] : ".") + "/fuzz-finding";
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_set_death_callback(keep_finding);
#endif
  for (const int s : {SIGPROF, SIGABRT, SIGSEGV, SIGFPE, SIGBUS}) std::signal(s, on_signal);
  for (const Target& t : targets()) {
    if (t.name.find(part) != std::string::npos) fuzz(t, n_executions, seed);
  }
}
