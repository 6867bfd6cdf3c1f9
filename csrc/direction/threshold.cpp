// Radix select on the 31 magnitude bits of the decoded fp32: their order as integers is the order of the
// magnitudes. The first pass counts by the 16 high bits, the second, inside the one bucket that holds the
// answer, by the 15 low bits.
#include "direction/threshold.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "base/bits.h"
#include "base/error.h"
#include "base/pages.h"
#include "format/codec.h"

namespace smezo {
namespace {

constexpr int kLowBits = 15;
constexpr size_t kHighBuckets = size_t{1} << 16, kLowBuckets = size_t{1} << kLowBits;
constexpr uint32_t kInfinityBits = 0x7F800000u;

// Counts of the buckets; pages of their own, since a thread's malloc would keep them.
class Counts {
 public:
  explicit Counts(size_t n) : pages_(allocate_pages(static_cast<int64_t>(n * sizeof(int64_t)))) {
    check<BudgetError>(pages_ != nullptr, "threshold", "no memory for a histogram");
  }
  int64_t& operator[](size_t b) { return static_cast<int64_t*>(pages_.get())[b]; }
  int64_t operator[](size_t b) const { return static_cast<const int64_t*>(pages_.get())[b]; }

 private:
  Pages pages_;
};

// counts[bucket(magnitude bits)] over all elements; bucket returns a negative number to leave an element out.
template <class Bucket>
Counts histogram(const Pieces& pieces, size_t n_buckets, ThreadPool* pool, Bucket bucket) {
  const int n_parts = pool ? pool->size() : 1;
  std::vector<Counts> parts;
  for (int p = 0; p < n_parts; ++p) parts.emplace_back(n_buckets);
  pieces([&](const WeightView& w, int64_t e0, int64_t n) {
    const auto body = [&](int64_t part, int) {
      Counts& counts = parts[static_cast<size_t>(part)];
      const int64_t end = e0 + n / n_parts * (part + 1) + (part + 1 == n_parts ? n % n_parts : 0);
      for (int64_t e = e0 + n / n_parts * part; e < end; ++e) {
        const int64_t b = bucket(f32_bits(decode_at(w, e)) & 0x7FFFFFFFu);
        if (b >= 0) ++counts[static_cast<size_t>(b)];
      }
    };
    if (pool) {
      pool->run(n_parts, body);
    } else {
      body(0, 0);
    }
  });
  for (size_t p = 1; p < parts.size(); ++p) {
    for (size_t b = 0; b < n_buckets; ++b) parts[0][b] += parts[p][b];
  }
  return std::move(parts[0]);
}

// Moves *rank (from 0) into the bucket that holds it and leaves in it the rank inside that bucket.
size_t find_bucket(const Counts& counts, int64_t* rank) {
  size_t b = 0;
  while (*rank >= counts[b]) *rank -= counts[b++];
  return b;
}

struct Selected {
  uint32_t bits;    // magnitude of the element of that rank
  int64_t n_below;  // elements with a smaller magnitude
  int64_t n_equal;
};

Selected select_rank(const Pieces& pieces, int64_t rank, ThreadPool* pool) {
  int64_t inside = rank;
  const Counts high =
      histogram(pieces, kHighBuckets, pool, [](uint32_t m) { return static_cast<int64_t>(m >> kLowBits); });
  for (size_t b = kInfinityBits >> kLowBits; b < kHighBuckets; ++b) {
    check<ArgumentError>(high[b] == 0, "threshold",
                         "a tensor holds " + std::to_string(high[b]) +
                             " infinite or NaN values, expected finite weights; the checkpoint is damaged");
  }
  const auto top = static_cast<uint32_t>(find_bucket(high, &inside));
  const Counts low = histogram(pieces, kLowBuckets, pool, [top](uint32_t m) {
    return m >> kLowBits == top ? static_cast<int64_t>(m & (kLowBuckets - 1)) : -1;
  });
  const size_t bottom = find_bucket(low, &inside);
  return {top << kLowBits | static_cast<uint32_t>(bottom), rank - inside, low[bottom]};
}

}  // namespace

int64_t n_kept(int64_t n, double sparsity) {
  check<ArgumentError>(sparsity >= 0 && sparsity < 1, "threshold",
                       "sparsity is " + std::to_string(sparsity) +
                           ", expected the frozen fraction in [0, 1); 1 would train nothing");
  check<ArgumentError>(n > 0, "threshold", "the matrix is empty, expected at least one element");
  return std::clamp<int64_t>(static_cast<int64_t>(std::floor((1 - sparsity) * static_cast<double>(n) + 0.5)),
                             1, n);
}

Threshold smallest_threshold(const Pieces& pieces, int64_t n, double sparsity, ThreadPool* pool) {
  const int64_t k = n_kept(n, sparsity);
  if (sparsity == 0) return {std::numeric_limits<float>::infinity(), n};
  const Selected s = select_rank(pieces, k - 1, pool);
  return {f32_from_bits(s.bits), s.n_below + s.n_equal};
}

Threshold largest_threshold(const Pieces& pieces, int64_t n, double sparsity, ThreadPool* pool) {
  const int64_t k = n_kept(n, sparsity);
  if (sparsity == 0) return {0, n};
  const Selected s = select_rank(pieces, n - k, pool);
  return {f32_from_bits(s.bits), n - s.n_below};
}

Threshold smallest_threshold(const WeightView& w, double sparsity, ThreadPool* pool) {
  return smallest_threshold([&](const auto& body) { body(w, 0, w.n()); }, w.n(), sparsity, pool);
}

Threshold largest_threshold(const WeightView& w, double sparsity, ThreadPool* pool) {
  return largest_threshold([&](const auto& body) { body(w, 0, w.n()); }, w.n(), sparsity, pool);
}

}  // namespace smezo
