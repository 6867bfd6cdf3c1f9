// CRC-32C (Castagnoli, polynomial 0x1EDC6F41, reflected), as in iSCSI (RFC 3720, B.4), ext4 and others. Known
// answer: "123456789" -> e3069283. Sliced by 8 as in Kounavis and Berry, "A Systematic Approach to Building
// High Performance, Software-based, CRC Generators" (2005).
#pragma once
#include <cstdint>

namespace smezo {

// Of a text in pieces: crc32c(b, n_b, crc32c(a, n_a)) is the checksum of a followed by b; 0 begins.
uint32_t crc32c(const void* data, int64_t n_bytes, uint32_t before = 0);

// The same without the machine's instruction; for tests.
uint32_t crc32c_by_table(const void* data, int64_t n_bytes, uint32_t before = 0);

}  // namespace smezo
