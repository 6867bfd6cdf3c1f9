// A 64-bit content hash, fast enough to read at memory speed. For telling bases apart by accident (I1), not
// against an adversary.
#pragma once
#include <cstdint>
#include <cstring>
#include <string>

namespace smezo {

constexpr int64_t kHashChunkBytes = 1 << 20;

namespace content_hash {
constexpr uint64_t kStart = 0x9E3779B97F4A7C15ull;
// splitmix64's finalizer (Steele, Lea, Flood 2014): every input bit reaches every output bit.
inline uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}
inline uint64_t word(const uint8_t* p, int64_t n) {
  uint64_t w = 0;
  std::memcpy(&w, p, static_cast<size_t>(n));
  return w;
}
}  // namespace content_hash

inline uint64_t hash_join(uint64_t state, uint64_t next) {
  return content_hash::mix((state ^ content_hash::mix(next + content_hash::kStart)) * 0xD6E8FEB86659FD93ull +
                           1);
}

// Four independent lanes of 8-byte little-endian words, word i to lane i % 4: lane <- rotate(lane ^ word) *
// odd, a bijection of the lane for a fixed word and of the word for a fixed lane. Then the lanes and the
// length are joined in order. In pieces of which all but the last are multiples of 32 bytes.
class ContentHash {
 public:
  void add(const void* from, int64_t n_bytes) {
    const uint8_t* p = static_cast<const uint8_t*>(from);
    int64_t i = 0;
    for (; i + 32 <= n_bytes; i += 32) {
      for (int j = 0; j < 4; ++j) step(lane_[j], content_hash::word(p + i + 8 * j, 8));
    }
    for (int j = 0; i < n_bytes; i += 8, ++j)
      step(lane_[j], content_hash::word(p + i, n_bytes - i < 8 ? n_bytes - i : 8));
    n_bytes_ += n_bytes;
  }
  uint64_t value() const {
    uint64_t h = hash_join(content_hash::kStart, static_cast<uint64_t>(n_bytes_));
    for (const uint64_t l : lane_) h = hash_join(h, l);
    return h;
  }

 private:
  static void step(uint64_t& l, uint64_t w) {
    l ^= w;
    l = ((l << 29) | (l >> 35)) * 0x9FB21C651E98DF25ull;
  }
  uint64_t lane_[4] = {1, 2, 3, 4};
  int64_t n_bytes_ = 0;
};

inline uint64_t hash_bytes(const void* from, int64_t n_bytes) {
  ContentHash h;
  h.add(from, n_bytes);
  return h.value();
}

inline std::string hash_text(uint64_t h) {
  std::string out;
  for (int shift = 60; shift >= 0; shift -= 4) out += "0123456789abcdef"[(h >> shift) & 15];
  return out;
}

}  // namespace smezo
