// The operating system's file system: one system call a function.
#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "io/file.h"

namespace smezo {
namespace {

template <class T>
T result(T value) {
  return value < 0 ? -static_cast<T>(errno) : value;
}

class PosixFileSystem final : public FileSystem {
 public:
  int open(const std::string& path, Open how) override {
    int flags = O_CLOEXEC;
    switch (how) {
      case Open::read:
        flags |= O_RDONLY;
        break;
      case Open::edit:
        flags |= O_RDWR;
        break;
      case Open::create:
        flags |= O_RDWR | O_CREAT | O_EXCL;
        break;
      case Open::lock:
        flags |= O_RDWR | O_CREAT;
        break;
      case Open::direct:
#if defined(O_DIRECT)
        flags |= O_RDONLY | O_DIRECT;
        break;
#else
        return -EINVAL;
#endif
    }
    const int handle = result(::open(path.c_str(), flags, 0666));
    if (handle < 0) return handle;
    // A folder opens for reading, and only fails later with a worse message.
    struct stat st;
    if (fstat(handle, &st) == 0 && S_ISDIR(st.st_mode)) {
      ::close(handle);
      return -EISDIR;
    }
    return handle;
  }
  int close(int handle) override { return result(::close(handle)); }
  int64_t size(int handle) override {
    struct stat st;
    return fstat(handle, &st) < 0 ? -errno : st.st_size;
  }
  int64_t pread(int handle, void* to, int64_t n_bytes, int64_t offset) override {
    return result<int64_t>(::pread(handle, to, static_cast<size_t>(n_bytes), offset));
  }
  int64_t pwrite(int handle, const void* from, int64_t n_bytes, int64_t offset) override {
    return result<int64_t>(::pwrite(handle, from, static_cast<size_t>(n_bytes), offset));
  }
  int sync(int handle) override {
#if defined(__APPLE__)
    // fsync there stops at the device's cache.
    return fcntl(handle, F_FULLFSYNC) == -1 ? result(fsync(handle)) : 0;
#else
    return result(
        fdatasync(handle));  // also writes the length, which is metadata needed to read the data back
#endif
  }
  int truncate(int handle, int64_t n_bytes) override { return result(ftruncate(handle, n_bytes)); }
  int lock(int handle) override { return result(flock(handle, LOCK_EX | LOCK_NB)); }
  int map(int handle, int64_t n_bytes, const uint8_t** at) override {
    void* p = mmap(nullptr, static_cast<size_t>(n_bytes), PROT_READ, MAP_SHARED, handle, 0);
    if (p == MAP_FAILED) return -errno;
#ifdef MADV_NOHUGEPAGE
    // A file that was just written may lie in the page cache in blocks of 2 MiB: one value touched would
    // bring all of its block.
    madvise(p, static_cast<size_t>(n_bytes), MADV_NOHUGEPAGE);
#endif
    *at = static_cast<const uint8_t*>(p);
    return 0;
  }
  void unmap(const uint8_t* at, int64_t n_bytes) override {
    munmap(const_cast<uint8_t*>(at), static_cast<size_t>(n_bytes));
  }
  void dont_need(const uint8_t* at, int64_t n_bytes) override {
    madvise(const_cast<uint8_t*>(at), static_cast<size_t>(n_bytes), MADV_DONTNEED);
    // A fault next to these pages brings what lies around it, but not beyond where the advice changes.
    madvise(const_cast<uint8_t*>(at), static_cast<size_t>(n_bytes), MADV_SEQUENTIAL);
  }
  void will_need(int handle, int64_t offset, int64_t n_bytes) override {
    advise(handle, offset, n_bytes, true);
  }
  void drop_cache(int handle, int64_t offset, int64_t n_bytes) override {
    advise(handle, offset, n_bytes, false);
  }
  void start_writing(int handle, int64_t offset, int64_t n_bytes) override {
#if defined(SYNC_FILE_RANGE_WRITE)
    sync_file_range(handle, offset, n_bytes, SYNC_FILE_RANGE_WRITE);
#endif
  }
  void await_writing(int handle, int64_t offset, int64_t n_bytes) override {
#if defined(SYNC_FILE_RANGE_WRITE)
    sync_file_range(handle, offset, n_bytes,
                    SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
#endif
  }
  int rename(const std::string& from, const std::string& to) override {
    return result(::rename(from.c_str(), to.c_str()));
  }
  int remove(const std::string& path) override { return result(::remove(path.c_str())); }
  int make_folder(const std::string& path) override { return result(mkdir(path.c_str(), 0777)); }
  int sync_folder(const std::string& path) override {
    const int handle = result(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (handle < 0) return handle;
    int code = result(fsync(handle));
    // Some network and FUSE file systems have no such call: they order names themselves or not at all.
    if (code == -EINVAL || code == -ENOTSUP) code = 0;
    ::close(handle);
    return code;
  }
  int list(const std::string& folder, std::vector<std::string>* names) override {
    DIR* d = opendir(folder.c_str());
    if (!d) return -errno;
    while (const dirent* e = readdir(d)) {
      const std::string name = e->d_name;
      if (name != "." && name != "..") names->push_back(name);
    }
    closedir(d);
    return 0;
  }
  int kind(const std::string& path) override {
    struct stat st;
    if (stat(path.c_str(), &st) < 0) return 0;
    return S_ISDIR(st.st_mode) ? 2 : 1;
  }
  int64_t free_bytes(const std::string& folder) override {
    struct statvfs st;
    if (statvfs(folder.c_str(), &st) < 0) return -errno;
    return static_cast<int64_t>(st.f_bavail) * static_cast<int64_t>(st.f_frsize);
  }

 private:
  static void advise(int handle, int64_t offset, int64_t n_bytes, bool need) {
#if defined(POSIX_FADV_DONTNEED)
    posix_fadvise(handle, offset, n_bytes, need ? POSIX_FADV_WILLNEED : POSIX_FADV_DONTNEED);
#endif
  }
};

PosixFileSystem posix;
FileSystem* current = &posix;

}  // namespace

FileSystem& file_system() { return *current; }

FileSystem* set_file_system(FileSystem* fs) {
  FileSystem* before = current;
  current = fs ? fs : &posix;
  return before;
}

}  // namespace smezo
