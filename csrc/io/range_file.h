// Reading ranges of a file into aligned memory: past the page cache, which a memory limit counts (O_DIRECT
// where the file system can, else plain reads whose pages are dropped behind them), or through it.
#pragma once
#include <cstdint>
#include <optional>
#include <string>

#include "io/file.h"

namespace smezo {

enum class PageCache : uint8_t { past, through };

class RangeFile {
 public:
  static constexpr int64_t kAlign = 4096;
  // Bytes of memory, aligned to kAlign, that reading n bytes at `offset` takes: the range widened to whole
  // pages.
  static int64_t room_for(int64_t offset, int64_t n_bytes);

  explicit RangeFile(const std::string& path, PageCache cache = PageCache::past);  // IoError
  bool direct() const { return direct_.has_value(); }
  // Reads [offset, offset + n_bytes) somewhere into `to` (aligned, room_for bytes) and returns where it
  // begins, a multiple of `align` (a power of two, at most kAlign) wherever it lay in the file. IoError, also
  // where the file ends first. Any thread.
  uint8_t* read(int64_t offset, int64_t n_bytes, uint8_t* to, int64_t align = 1) const;
  // Single small ranges go through the page cache: tell all of them first, so that they are fetched at once.
  void will_need(int64_t offset, int64_t n_bytes) const { plain_.will_need(offset, n_bytes); }
  void read_small(int64_t offset, int64_t n_bytes, void* to) const;
  // After them, once: letting go of pages one by one waits for every processor each time.
  void let_go_of_small(int64_t offset, int64_t n_bytes) const;

 private:
  void read_pages(int64_t offset, int64_t n_bytes, uint8_t* to) const;

  PageCache cache_;
  File plain_;
  std::optional<File> direct_;
};

}  // namespace smezo
