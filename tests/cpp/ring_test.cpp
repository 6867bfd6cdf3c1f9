// The ring against a model that marks every page, over random takes and releases.
#include "store/ring.h"

#include <cstring>
#include <random>
#include <vector>

#include "test.h"

using namespace smezo;

namespace {

constexpr int64_t kPage = Ring::kAlign;

// Pages in use, by number of the block that has them; a block lies behind the last one or at the beginning.
struct Model {
  explicit Model(int64_t n_pages) : pages(static_cast<size_t>(n_pages), -1) {}

  // The first page of the n that a block would get, -1: no room.
  int64_t place(int64_t n) const {
    const int64_t size = static_cast<int64_t>(pages.size());
    int64_t at = end;
    if (at + n > size) {
      if (!blocks.empty() && blocks.back().first < blocks.front().first) return -1;  // it has wrapped before
      at = 0;
    }
    if (at + n > size) return -1;
    for (int64_t p = at; p < at + n; ++p) {
      if (pages[static_cast<size_t>(p)] >= 0) return -1;
    }
    return at;
  }
  void mark(int64_t at, int64_t n, int number) {
    for (int64_t p = at; p < at + n; ++p) pages[static_cast<size_t>(p)] = number;
  }

  std::vector<int> pages;
  std::vector<std::pair<int64_t, int64_t>> blocks;
  int64_t end = 0;  // of the last block there was
};

}  // namespace

TEST(random_takes_and_releases_equal_the_model) {
  std::mt19937 random(1);
  int64_t n_taken = 0, n_refused = 0, n_wrapped = 0;
  for (int trial = 0; trial < 300; ++trial) {
    const int64_t n_pages = 1 + static_cast<int64_t>(random() % 24),
                  most = 1 + static_cast<int64_t>(random() % n_pages);
    Ring ring(n_pages * kPage);
    CHECK(ring.size() == n_pages * kPage);
    Model model(n_pages);
    uint8_t* first = nullptr;
    for (int i = 0; i < 400; ++i) {
      if (random() % 500 == 0) {
        ring.clear();
        model = Model(n_pages);
      }
      if (random() % 5 < 3) {
        const int64_t n = 1 + static_cast<int64_t>(random() % most), at = model.place(n);
        uint8_t* const got = ring.take(n * kPage);
        CHECK((got != nullptr) == (at >= 0));
        if (got == nullptr || at < 0) {
          ++n_refused;
          continue;
        }
        if (first == nullptr) first = got - at * kPage;
        CHECK(got == first + at * kPage && reinterpret_cast<uintptr_t>(got) % kPage == 0);
        if (!model.blocks.empty() && at < model.blocks.back().first) ++n_wrapped;
        model.mark(at, n, i);
        model.blocks.push_back({at, n});
        model.end = at + n;
        std::memset(got, i & 255, static_cast<size_t>(n * kPage));
        ++n_taken;
      } else if (!model.blocks.empty()) {
        const auto [at, n] = model.blocks.front();
        // Nobody wrote over it.
        const uint8_t* const p = first + at * kPage;
        const int number = model.pages[static_cast<size_t>(at)];
        CHECK(p[0] == (number & 255) && p[n * kPage - 1] == (number & 255));
        model.mark(at, n, -1);
        model.blocks.erase(model.blocks.begin());
        ring.give_back_oldest();
      }
    }
  }
  CHECK(n_taken > 10000 && n_refused > 1000 && n_wrapped > 1000);
}

TEST(exact_fits) {
  Ring ring(3 * kPage - 5);  // rounded up
  uint8_t* const a = ring.take(3 * kPage);
  CHECK(a != nullptr && ring.take(kPage) == nullptr);
  ring.give_back_oldest();
  CHECK(ring.take(2 * kPage) == a && ring.take(kPage) == a + 2 * kPage && ring.take(kPage) == nullptr);
  ring.give_back_oldest();
  CHECK(ring.take(2 * kPage) == a && ring.take(kPage) == nullptr);  // up to the oldest, exactly
  ring.give_back_oldest();
  CHECK(ring.take(kPage) == a + 2 * kPage && ring.take(kPage) == nullptr);
  CHECK(Ring(kPage).take(2 * kPage) == nullptr);
}

// A block of nothing would make "wrapped" and "not wrapped" look the same.
TEST(a_block_of_nothing_does_not_let_others_overlap) {
  Ring ring(4 * kPage);
  uint8_t* const a = ring.take(2 * kPage);
  CHECK(ring.take(2 * kPage) == a + 2 * kPage);
  ring.give_back_oldest();
  CHECK(ring.take(2 * kPage) == a);
  CHECK(ring.take(0) == nullptr);
  CHECK(ring.take(kPage) == nullptr);
}

TEST(giving_back_what_was_not_taken_is_refused) {
  Ring ring(kPage);
  CHECK_THROWS(ArgumentError, "nothing", ring.give_back_oldest());
}

TEST_MAIN()
