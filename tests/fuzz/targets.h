// What is fuzzed: a reader, valid inputs to begin with, and checksums to put right after a change.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace smezo_fuzz {

using Bytes = std::vector<uint8_t>;

struct Target {
  std::string name;
  std::vector<Bytes> seeds;
  // Reads it. What it refuses with one of the library's errors is refused well; anything else is a finding.
  std::function<void(const Bytes&)> read;
  // Without it no change would get past a checksum. May be empty.
  std::function<void(Bytes&)> repair;
  // Bytes of memory that reading n bytes may take, at most.
  int64_t memory_per_byte = 64;
};

// All of them, over the file system that is in place when they are called.
std::vector<Target> targets();

}  // namespace smezo_fuzz
