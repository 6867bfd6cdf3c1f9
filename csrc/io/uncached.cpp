#include "io/uncached.h"

#include <algorithm>
#include <cerrno>

#include "base/error.h"

namespace smezo {
namespace {

int64_t down(int64_t n) { return n / UncachedFile::kAlign * UncachedFile::kAlign; }
int64_t up(int64_t n) { return down(n + UncachedFile::kAlign - 1); }

bool can_read_directly(const std::string& path) {
  const int handle = file_system().open(path, Open::direct);
  if (handle < 0) return false;
  file_system().close(handle);
  return true;
}

}  // namespace

int64_t UncachedFile::room_for(int64_t offset, int64_t n_bytes) {
  return up(offset + n_bytes) - down(offset);
}

UncachedFile::UncachedFile(const std::string& path)
    : plain_(File::open(path, Open::read)),
      file_(File::open(path, can_read_directly(path) ? Open::direct : Open::read)),
      direct_(can_read_directly(path)) {}

uint8_t* UncachedFile::read(int64_t offset, int64_t n_bytes, uint8_t* to) const {
  const int64_t begin = down(offset), end = offset + n_bytes;
  if (n_bytes == 0) return to;
  if (direct_) {
    // The last page may be cut short by the end of the file: whole pages are asked for, `end` must be
    // reached.
    constexpr int64_t kMost = int64_t{1} << 30;
    for (int64_t at = begin; at < end;) {
      const int64_t got =
          file_.fs_->pread(file_.handle_, to + (at - begin), std::min(up(end) - at, kMost), at);
      if (got == -EINTR) continue;
      // Some file systems open so and refuse to read so; after the end of the file a short read is not
      // aligned.
      if (got <= 0 || (got % kAlign != 0 && at + got < end)) {
        plain_.read(to + (at - begin), end - at, at);  // says what is wrong, or works
        plain_.drop_cache(at, end - at);
        break;
      }
      at += got;
    }
    return to + (offset - begin);
  }
  file_.read(to + (offset - begin), n_bytes, offset);
  file_.drop_cache(begin, up(end) - begin);
  return to + (offset - begin);
}

void UncachedFile::read_small(int64_t offset, int64_t n_bytes, void* to) const {
  plain_.read(to, n_bytes, offset);
  plain_.drop_cache(down(offset), up(offset + n_bytes) - down(offset));
}

}  // namespace smezo
