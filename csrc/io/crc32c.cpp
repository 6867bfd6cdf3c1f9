// CRC-32C: the machine's instruction where it has one, else eight bytes a step from eight tables made at
// compile time.
#include "io/crc32c.h"

#include <array>
#include <cstring>
#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace smezo {
namespace {

constexpr uint32_t reflected_polynomial = 0x82F63B78u;
using Tables = std::array<std::array<uint32_t, 256>, 8>;

constexpr Tables make_tables() {
  Tables t{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t c = byte;
    for (int bit = 0; bit < 8; ++bit) c = (c >> 1) ^ (c & 1 ? reflected_polynomial : 0);
    t[0][byte] = c;
  }
  for (int k = 1; k < 8; ++k)
    for (int byte = 0; byte < 256; ++byte) t[k][byte] = (t[k - 1][byte] >> 8) ^ t[0][t[k - 1][byte] & 255];
  return t;
}
constexpr Tables tables = make_tables();

#if defined(__x86_64__)
// The state before its complement, over whole words. Only called where the processor says it can.
__attribute__((target("sse4.2"))) uint32_t by_instruction(const uint8_t* p, int64_t n_words, uint32_t c) {
  uint64_t state = c;
  for (int64_t i = 0; i < n_words; ++i) {
    uint64_t word;
    std::memcpy(&word, p + 8 * i, 8);
    state = _mm_crc32_u64(state, word);
  }
  return static_cast<uint32_t>(state);
}
#endif

inline uint32_t load_le(const uint8_t* p) {
  return uint32_t{p[0]} | uint32_t{p[1]} << 8 | uint32_t{p[2]} << 16 | uint32_t{p[3]} << 24;
}

}  // namespace

uint32_t crc32c_by_table(const void* data, int64_t n_bytes, uint32_t before) {
  const auto* p = static_cast<const uint8_t*>(data);
  uint32_t c = ~before;
  for (; n_bytes >= 8; p += 8, n_bytes -= 8) {
    const uint32_t a = c ^ load_le(p), b = load_le(p + 4);
    c = tables[7][a & 255] ^ tables[6][a >> 8 & 255] ^ tables[5][a >> 16 & 255] ^ tables[4][a >> 24] ^
        tables[3][b & 255] ^ tables[2][b >> 8 & 255] ^ tables[1][b >> 16 & 255] ^ tables[0][b >> 24];
  }
  for (; n_bytes > 0; ++p, --n_bytes) c = (c >> 8) ^ tables[0][(c ^ *p) & 255];
  return ~c;
}

uint32_t crc32c(const void* data, int64_t n_bytes, uint32_t before) {
#if defined(__x86_64__)
  static const bool has_instruction = __builtin_cpu_supports("sse4.2");
  if (has_instruction) {
    const auto* p = static_cast<const uint8_t*>(data);
    const int64_t n_words = n_bytes / 8;
    return crc32c_by_table(p + 8 * n_words, n_bytes % 8, ~by_instruction(p, n_words, ~before));
  }
#endif
  return crc32c_by_table(data, n_bytes, before);
}

}  // namespace smezo
