#include "io/range_file.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/error.h"

namespace smezo {
namespace {

int64_t down(int64_t n) { return n / RangeFile::kAlign * RangeFile::kAlign; }
int64_t up(int64_t n) { return down(n + RangeFile::kAlign - 1); }

std::optional<File> open_directly(const std::string& path) {
  try {
    return File::open(path, Open::direct);
  } catch (const IoError&) {
    return std::nullopt;
  }
}

uint8_t* aligned_down(uint8_t* at, int64_t n_bytes, int64_t align) {
  const int64_t past = static_cast<int64_t>(reinterpret_cast<uintptr_t>(at) % static_cast<uintptr_t>(align));
  if (past != 0) std::memmove(at - past, at, static_cast<size_t>(n_bytes));
  return at - past;
}

}  // namespace

int64_t RangeFile::room_for(int64_t offset, int64_t n_bytes) { return up(offset + n_bytes) - down(offset); }

RangeFile::RangeFile(const std::string& path, PageCache cache)
    : cache_(cache),
      plain_(File::open(path, Open::read)),
      direct_(cache == PageCache::past ? open_directly(path) : std::nullopt) {}

uint8_t* RangeFile::read(int64_t offset, int64_t n_bytes, uint8_t* to, int64_t align) const {
  if (n_bytes == 0) return to;
  if (cache_ == PageCache::through) {
    plain_.will_need(offset, n_bytes);  // all of it on its way at once
    plain_.read(to, n_bytes, offset);
    return to;
  }
  read_pages(offset, n_bytes, to);
  // `to` begins with a page, so there is room below.
  return aligned_down(to + (offset - down(offset)), n_bytes, align);
}

void RangeFile::read_pages(int64_t offset, int64_t n_bytes, uint8_t* to) const {
  const int64_t begin = down(offset), end = offset + n_bytes;
  if (direct_) {
    // The last page may be cut short by the end of the file: whole pages are asked for, `end` must be
    // reached.
    constexpr int64_t kMost = int64_t{1} << 30;
    for (int64_t at = begin; at < end;) {
      const int64_t got =
          direct_->fs_->pread(direct_->handle_, to + (at - begin), std::min(up(end) - at, kMost), at);
      if (got == -EINTR) continue;
      // Some file systems open so and refuse to read so; after the end of the file a short read is not
      // aligned.
      if (got <= 0 || (got % kAlign != 0 && at + got < end)) {
        plain_.read(to + (at - begin), end - at, at);  // says what is wrong, or works
        plain_.drop_cache(at, up(end) - at);
        return;
      }
      at += got;
    }
    return;
  }
  plain_.read(to + (offset - begin), n_bytes, offset);
  plain_.drop_cache(begin, up(end) - begin);
}

void RangeFile::read_small(int64_t offset, int64_t n_bytes, void* to) const {
  plain_.read(to, n_bytes, offset);
}

void RangeFile::let_go_of_small(int64_t offset, int64_t n_bytes) const {
  if (cache_ == PageCache::past) plain_.drop_cache(down(offset), up(offset + n_bytes) - down(offset));
}

}  // namespace smezo
