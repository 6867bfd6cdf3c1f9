// File, Map, atomic writing and the run lock, over any FileSystem.
#include "io/file.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace smezo {
namespace {

constexpr const char* temporary_mark = ".tmp-";
constexpr int64_t kLongPiece = 64 << 10, kMostOnTheirWay = int64_t{16} << 20;
constexpr int64_t max_io_bytes = int64_t{1} << 30;  // Linux moves at most 2 GiB - 4 KiB a call

std::string reason(int64_t code) { return std::strerror(static_cast<int>(-code)); }

[[noreturn]] void io_fail(const std::string& what, const std::string& path, int64_t code,
                          const std::string& cause = "") {
  fail<IoError>("io", what + " '" + path + "': " + reason(code) + (cause.empty() ? "" : "; " + cause));
}

const char* likely_cause(int64_t code) {
  switch (-code) {
    case ENOENT:
      return "expected an existing path; check the spelling, or the working folder";
    case EACCES:
    case EPERM:
    case EROFS:
      return "expected permission; check the owner of the file and of its folder, or a read-only mount";
    case EEXIST:
      return "expected no file of that name; a run or a file is already there";
    case EFBIG:
      return "expected it to grow; a limit on the size of files, see ulimit -f";
    case EMFILE:
    case ENFILE:
      return "too many open files; see ulimit -n";
    default:
      return "";
  }
}

}  // namespace

File File::open(const std::string& path, Open how) {
  File f;
  f.path_ = path;
  f.fs_ = &file_system();
  f.handle_ = f.fs_->open(path, how);
  if (f.handle_ < 0)
    io_fail(how == Open::create ? "cannot create" : "cannot open", path, f.handle_, likely_cause(f.handle_));
  return f;
}

File::~File() { close_now(); }

void File::close_now() noexcept {
  // What matters was synced before; an error of close would tell nothing more.
  if (handle_ >= 0) fs_->close(handle_);
  handle_ = -1;
}

File::File(File&& other) noexcept
    : on_their_way_(std::move(other.on_their_way_)),
      on_their_way_bytes_(std::exchange(other.on_their_way_bytes_, 0)),
      will_hold_(other.will_hold_),
      written_(other.written_),
      path_(std::move(other.path_)),
      fs_(other.fs_),
      handle_(std::exchange(other.handle_, -1)) {}

File& File::operator=(File&& other) noexcept {
  if (this != &other) {
    close_now();
    on_their_way_ = std::move(other.on_their_way_);
    on_their_way_bytes_ = std::exchange(other.on_their_way_bytes_, 0);
    will_hold_ = other.will_hold_;
    written_ = other.written_;
    path_ = std::move(other.path_);
    fs_ = other.fs_;
    handle_ = std::exchange(other.handle_, -1);
  }
  return *this;
}

int64_t File::size() const {
  const int64_t n = fs_->size(handle_);
  if (n < 0) io_fail("cannot read the size of", path_, n);
  return n;
}

void File::read(void* to, int64_t n_bytes, int64_t offset) const {
  auto* p = static_cast<uint8_t*>(to);
  for (int64_t done = 0; done < n_bytes;) {
    const int64_t got = fs_->pread(handle_, p + done, std::min(n_bytes - done, max_io_bytes), offset + done);
    if (got == -EINTR) continue;
    if (got < 0) io_fail("cannot read", path_, got);
    if (got == 0)
      fail<IoError>("io", "'" + path_ + "' is truncated: it ends at byte " + std::to_string(offset + done) +
                              ", expected " + std::to_string(n_bytes - done) +
                              " more; an interrupted copy or download, or it is being replaced");
    done += got;
  }
}

void File::will_need(int64_t offset, int64_t n_bytes) const { fs_->will_need(handle_, offset, n_bytes); }
void File::drop_cache(int64_t offset, int64_t n_bytes) const { fs_->drop_cache(handle_, offset, n_bytes); }

void File::write(const void* from, int64_t n_bytes, int64_t offset) {
  const auto* p = static_cast<const uint8_t*>(from);
  for (int64_t done = 0; done < n_bytes;) {
    const int64_t put = fs_->pwrite(handle_, p + done, std::min(n_bytes - done, max_io_bytes), offset + done);
    if (put == -EINTR) continue;
    if (put == -ENOSPC || put == -EDQUOT || put == 0) {
      const int64_t free = fs_->free_bytes(parent_folder(path_));
      fail<IoError>("io", "cannot write '" + path_ + "': " + (put == 0 ? "no progress" : reason(put)) +
                              "; needed " + std::to_string(std::max(n_bytes - done, will_hold_ - written_)) +
                              " more bytes, the disk has " +
                              (free < 0 ? "an unknown number" : std::to_string(free)) +
                              " free; make room and try again");
    }
    if (put < 0) io_fail("cannot write", path_, put, likely_cause(put));
    done += put;
    written_ += put;
  }
  if (n_bytes >= kLongPiece) send_out(offset, n_bytes);
}

void File::send_out(int64_t offset, int64_t n_bytes) {
  fs_->start_writing(handle_, offset, n_bytes);
  on_their_way_.push_back({offset, n_bytes});
  on_their_way_bytes_ += n_bytes;
  for (; on_their_way_bytes_ > kMostOnTheirWay; on_their_way_.pop_front()) {
    const Range r = on_their_way_.front();
    fs_->await_writing(handle_, r.offset, r.n_bytes);
    fs_->drop_cache(handle_, r.offset, r.n_bytes);
    on_their_way_bytes_ -= r.n_bytes;
  }
}

void File::sync() {
  int code;
  do code = fs_->sync(handle_);
  while (code == -EINTR);
  if (code < 0) io_fail("cannot sync", path_, code, "what reached the device is unknown");
}

void File::truncate(int64_t n_bytes) {
  int code;
  do code = fs_->truncate(handle_, n_bytes);
  while (code == -EINTR);
  if (code < 0) io_fail("cannot truncate", path_, code);
}

bool File::try_lock() {
  const int code = fs_->lock(handle_);
  if (code == -EWOULDBLOCK) return false;
  if (code < 0) io_fail("cannot lock", path_, code, "this file system may have no locks");
  return true;
}

Map::Map(const File& file) : fs_(file.fs_), n_bytes_(file.size()) {
  if (n_bytes_ == 0) return;
  const int code = fs_->map(file.handle_, n_bytes_, &at_);
  if (code < 0) io_fail("cannot map " + std::to_string(n_bytes_) + " bytes of", file.path(), code);
}

Map::~Map() {
  if (at_) fs_->unmap(at_, n_bytes_);
}

Map::Map(Map&& other) noexcept
    : fs_(other.fs_), at_(std::exchange(other.at_, nullptr)), n_bytes_(std::exchange(other.n_bytes_, 0)) {}

Map& Map::operator=(Map&& other) noexcept {
  if (this != &other) {
    if (at_) fs_->unmap(at_, n_bytes_);
    fs_ = other.fs_;
    at_ = std::exchange(other.at_, nullptr);
    n_bytes_ = std::exchange(other.n_bytes_, 0);
  }
  return *this;
}

void Map::dont_need(int64_t offset, int64_t n_bytes) const {
  // Inward to whole pages: a neighbour's bytes on a shared page stay.
  const int64_t page = sysconf(_SC_PAGESIZE);
  const int64_t first = (std::max<int64_t>(offset, 0) + page - 1) / page * page;
  const int64_t end = offset + n_bytes >= n_bytes_ ? n_bytes_ : (offset + n_bytes) / page * page;
  if (at_ && end > first) fs_->dont_need(at_ + first, end - first);
}

std::string parent_folder(const std::string& path) {
  size_t end = path.size();
  while (end > 1 && path[end - 1] == '/') --end;
  const size_t slash = path.rfind('/', end - 1);
  if (slash == std::string::npos || end == 0) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

std::string join(const std::string& folder, const std::string& name) {
  return folder.empty() || folder.back() == '/' ? folder + name : folder + "/" + name;
}

void write_atomically(const std::string& path, const std::function<void(File&)>& fill) {
  FileSystem& fs = file_system();
  static std::atomic<uint32_t> n_temporaries{0};
  const std::string temporary =
      path + temporary_mark + std::to_string(getpid()) + "-" + std::to_string(n_temporaries.fetch_add(1));
  // A process of this number may have died and left its file.
  if (fs.kind(temporary) == 1) fs.remove(temporary);
  try {
    {
      File f = File::open(temporary, Open::create);
      fill(f);
      f.sync();
    }
    const int renamed = fs.rename(temporary, path);
    if (renamed < 0) io_fail("cannot rename a new file to", path, renamed, likely_cause(renamed));
  } catch (...) {
    fs.remove(temporary);
    throw;
  }
  const int synced = fs.sync_folder(parent_folder(path));
  if (synced < 0)
    io_fail("cannot sync the folder of", path, synced,
            "the new file is there but may be lost in a power cut");
}

void write_atomically(const std::string& path, const std::string& content) {
  write_atomically(path, [&](File& f) { f.write(content.data(), static_cast<int64_t>(content.size()), 0); });
}

std::string read_all(const std::string& path) {
  const File f = File::open(path, Open::read);
  std::string text(static_cast<size_t>(f.size()), '\0');
  f.read(text.data(), static_cast<int64_t>(text.size()), 0);
  return text;
}

std::vector<std::string> list_folder(const std::string& folder) {
  std::vector<std::string> names;
  const int code = file_system().list(folder, &names);
  if (code < 0) io_fail("cannot list", folder, code, likely_cause(code));
  std::sort(names.begin(), names.end());
  return names;
}

void remove_file(const std::string& path) {
  const int code = file_system().remove(path);
  if (code < 0) io_fail("cannot remove", path, code, likely_cause(code));
}

void remove_temporaries(const std::string& folder) {
  for (const auto& name : list_folder(folder)) {
    const size_t at = name.rfind(temporary_mark);
    if (at == std::string::npos || at == 0) continue;
    const std::string rest = name.substr(at + std::strlen(temporary_mark));
    if (rest.empty() || rest.find_first_not_of("0123456789-") != std::string::npos) continue;
    remove_file(join(folder, name));
  }
}

bool file_exists(const std::string& path) { return file_system().kind(path) == 1; }
bool folder_exists(const std::string& path) { return file_system().kind(path) == 2; }

void make_folders(const std::string& path) {
  if (path.empty() || folder_exists(path)) return;
  const std::string parent = parent_folder(path);
  if (parent != path) make_folders(parent);
  const int made = file_system().make_folder(path);
  if (made < 0 && made != -EEXIST) io_fail("cannot make the folder", path, made, likely_cause(made));
  if (!folder_exists(path)) fail<IoError>("io", "'" + path + "' is a file, expected a folder");
  const int synced = file_system().sync_folder(parent);
  if (synced < 0) io_fail("cannot sync the folder of", path, synced);
}

namespace {
File take_run_lock(const std::string& run_folder) {
  File f = File::open(join(run_folder, "lock"), Open::lock);
  if (!f.try_lock()) {
    char text[24] = {};
    const int64_t n = std::min<int64_t>(f.size(), sizeof text - 1);
    f.read(text, n, 0);
    fail<ArgumentError>("run", "'" + run_folder + "' is in use by process " +
                                   (n ? std::string(text) : "unknown") +
                                   ", expected nobody; stop that run, or choose another folder");
  }
  const std::string pid = std::to_string(getpid());
  f.truncate(0);
  f.write(pid.data(), static_cast<int64_t>(pid.size()), 0);
  return f;
}
}  // namespace

RunLock::RunLock(const std::string& run_folder) : file_(take_run_lock(run_folder)) {
  remove_temporaries(run_folder);
}

}  // namespace smezo
