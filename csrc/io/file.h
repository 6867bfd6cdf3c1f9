// Every system call that touches a file goes through FileSystem, so that a crash simulator can sit beneath
// the library and test it unmodified. File, Map, write_atomically and RunLock are what the rest of the
// library uses.
#pragma once
#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <vector>

namespace smezo {

enum class Open : uint8_t {
  read,    // must exist
  edit,    // must exist; read and write
  create,  // must not exist; read and write
  lock,    // read and write, made if it is not there
  direct,  // must exist; read past the page cache, in aligned pieces; -EINVAL where the file system cannot
};

// Thin: each call does one system call and returns its value or -errno. Loops and messages are File's.
class FileSystem {
 public:
  virtual ~FileSystem() = default;
  virtual int open(const std::string& path, Open how) = 0;  // a handle
  virtual int close(int handle) = 0;
  virtual int64_t size(int handle) = 0;
  virtual int64_t pread(int handle, void* to, int64_t n_bytes, int64_t offset) = 0;
  virtual int64_t pwrite(int handle, const void* from, int64_t n_bytes, int64_t offset) = 0;
  virtual int sync(
      int handle) = 0;  // data and length are on the device; a new name is not: that takes sync_folder
  virtual int truncate(int handle, int64_t n_bytes) = 0;
  virtual int lock(
      int handle) = 0;  // exclusive, advisory, does not wait: -EWOULDBLOCK when another handle has it
  virtual int map(int handle, int64_t n_bytes, const uint8_t** at) = 0;
  virtual void unmap(const uint8_t* at, int64_t n_bytes) = 0;
  virtual void dont_need(const uint8_t* at, int64_t n_bytes) = 0;
  // Hints about the page cache: a range will be read soon, or will not be read again.
  virtual void will_need(int /*handle*/, int64_t /*offset*/, int64_t /*n_bytes*/) {}
  virtual void drop_cache(int /*handle*/, int64_t /*offset*/, int64_t /*n_bytes*/) {}
  // Begins to write a range to the device, or waits until that is done. No promise: `sync` makes one.
  virtual void start_writing(int /*handle*/, int64_t /*offset*/, int64_t /*n_bytes*/) {}
  virtual void await_writing(int /*handle*/, int64_t /*offset*/, int64_t /*n_bytes*/) {}
  virtual int rename(const std::string& from, const std::string& to) = 0;
  virtual int remove(const std::string& path) = 0;  // a file, or an empty folder
  virtual int make_folder(const std::string& path) = 0;
  virtual int sync_folder(const std::string& path) = 0;  // the folder's names are on the device
  virtual int list(const std::string& folder, std::vector<std::string>* names) = 0;
  virtual int kind(const std::string& path) = 0;  // 0 nothing there, 1 a file, 2 a folder
  virtual int64_t free_bytes(const std::string& folder) = 0;
};

FileSystem& file_system();
// Replaces the operating system's and returns what was there; nullptr puts the operating system's back. Not
// for use while threads run.
FileSystem* set_file_system(FileSystem* fs);

class File {
 public:
  static File open(const std::string& path, Open how);  // IoError
  ~File();
  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  int64_t size() const;
  // All n_bytes, or IoError ("truncated" where the file ends first).
  void read(void* to, int64_t n_bytes, int64_t offset) const;
  // IoError; when the disk is full it says how many bytes were needed and how many are free. A failed write
  // may have written a part. Long pieces are sent to the device as they come and leave the page cache behind,
  // so that a sync after many of them is short and a memory limit does not see them.
  void write(const void* from, int64_t n_bytes, int64_t offset);
  // How long it will be, so that a full disk is told with all that is still to come.
  void will_hold(int64_t n_bytes) { will_hold_ = n_bytes; }
  // After an IoError from sync the kernel may have dropped the dirty pages: trying again and succeeding
  // proves nothing.
  void sync();
  void truncate(int64_t n_bytes);
  void will_need(int64_t offset, int64_t n_bytes) const;
  void drop_cache(int64_t offset, int64_t n_bytes) const;
  bool try_lock();  // false: another handle has it
  const std::string& path() const { return path_; }

 private:
  friend class Map;
  friend class RangeFile;
  File() = default;
  void close_now() noexcept;
  void send_out(int64_t offset, int64_t n_bytes);
  struct Range {
    int64_t offset, n_bytes;
  };
  std::deque<Range> on_their_way_;
  int64_t on_their_way_bytes_ = 0;
  int64_t will_hold_ = 0, written_ = 0;
  std::string path_;
  FileSystem* fs_ = nullptr;
  int handle_ = -1;
};

// A whole file, mapped read-only. If somebody truncates the file under it, reading raises SIGBUS: files of
// ours are replaced by rename, never shortened.
class Map {
 public:
  Map() = default;
  explicit Map(const File& file);
  ~Map();
  Map(Map&& other) noexcept;
  Map& operator=(Map&& other) noexcept;
  Map(const Map&) = delete;
  Map& operator=(const Map&) = delete;

  const uint8_t* data() const { return at_; }  // nullptr for an empty file
  int64_t size() const { return n_bytes_; }
  // The pages wholly inside the range leave this process's memory; they are read again when touched.
  void dont_need(int64_t offset, int64_t n_bytes) const;

 private:
  FileSystem* fs_ = nullptr;
  const uint8_t* at_ = nullptr;
  int64_t n_bytes_ = 0;
};

// A reader of `path` sees the old file or the whole new one, after any crash: `fill` writes a temporary
// sibling, which is synced and renamed over `path`, and the folder is synced. If fill throws, the sibling is
// removed and path is as it was.
void write_atomically(const std::string& path, const std::function<void(File&)>& fill);
void write_atomically(const std::string& path, const std::string& content);
std::string read_all(const std::string& path);

// Removes what a crash inside write_atomically left in a folder. Only for a folder that nobody else writes to
// (RunLock).
void remove_temporaries(const std::string& folder);

bool file_exists(const std::string& path);
bool folder_exists(const std::string& path);
// Makes the folder and those above it, durably. Existing ones are left alone.
void make_folders(const std::string& path);
void remove_file(const std::string& path);
std::vector<std::string> list_folder(const std::string& folder);  // sorted
std::string parent_folder(const std::string& path);
std::string join(const std::string& folder, const std::string& name);

// One process per run folder, from construction to destruction. ArgumentError if another has it. The
// operating system lets go of it when the process dies, however it dies. Clears what a crash left half
// written in the folder.
class RunLock {
 public:
  explicit RunLock(const std::string& run_folder);

 private:
  File file_;
};

}  // namespace smezo
