// Reading and appending; the format and its rule are in the header.
#include "io/journal.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <random>

#include "base/error.h"
#include "io/crc32c.h"
#include "io/json.h"

namespace smezo {
namespace {

constexpr uint8_t magic[8] = {0x73, 0x6d, 0x65, 0x7a, 0x6f, 0x4a, 0x0d, 0x0a};
constexpr uint32_t version = 1;
constexpr int64_t head_bytes = 24;  // of the file header, before the JSON
constexpr int64_t record_bytes = kRecordHeadBytes;
constexpr size_t max_scalars = 255;
constexpr int64_t max_record_bytes = record_bytes + 4 * static_cast<int64_t>(max_scalars);
constexpr uint32_t max_json_bytes = 64u << 20;
constexpr uint8_t last_kind = 15;

void put32(uint8_t* p, uint32_t v) {
  for (int i = 0; i < 4; ++i) p[i] = static_cast<uint8_t>(v >> (8 * i));
}
uint32_t get32(const uint8_t* p) {
  return uint32_t{p[0]} | uint32_t{p[1]} << 8 | uint32_t{p[2]} << 16 | uint32_t{p[3]} << 24;
}
void put_float(uint8_t* p, float v) { put32(p, std::bit_cast<uint32_t>(v)); }
float get_float(const uint8_t* p) { return std::bit_cast<float>(get32(p)); }

[[noreturn]] void bad(const std::string& path, const std::string& what) {
  fail<FormatError>("journal", "'" + path + "': " + what);
}

uint32_t chain_of(const uint8_t* record, int64_t n_bytes, uint32_t previous) {
  uint8_t p[4];
  put32(p, previous);
  return crc32c(record + 4, n_bytes - 4, crc32c(p, 4));
}

// Checksums continue from a prefix, so the salt is summed once for a file.
uint32_t salt_crc(uint64_t salt) {
  uint8_t p[8];
  put32(p, static_cast<uint32_t>(salt));
  put32(p + 4, static_cast<uint32_t>(salt >> 32));
  return crc32c(p, 8);
}

// Length of the intact record at p, or 0. `at_most` bounds n_synced.
int64_t intact(const uint8_t* p, int64_t n_left, uint32_t salt, int64_t at_most) {
  if (n_left < record_bytes || p[8] == 0 || p[8] > last_kind || get32(p + 16) > at_most) return 0;
  const int64_t n = record_bytes + 4 * p[9];
  if (n > n_left || crc32c(p + 8, n - 8, salt) != get32(p + 4)) return 0;
  return n;
}

void decode(const uint8_t* p, Record* r) {
  r->kind = static_cast<RecordKind>(p[8]);
  r->flags = static_cast<uint16_t>(p[10] | p[11] << 8);
  r->step = get32(p + 12);
  r->lr = get_float(p + 20);
  r->decay = get_float(p + 24);
  r->loss = get_float(p + 28);
  r->loss_plus = get_float(p + 32);
  r->loss_minus = get_float(p + 36);
  r->scalars.resize(p[9]);
  for (size_t i = 0; i < r->scalars.size(); ++i) r->scalars[i] = get_float(p + record_bytes + 4 * i);
}

void encode(const Record& r, uint32_t n_synced, uint32_t salt, uint32_t previous, std::vector<uint8_t>* out) {
  out->resize(record_bytes + 4 * r.scalars.size());
  uint8_t* p = out->data();
  p[8] = static_cast<uint8_t>(r.kind);
  p[9] = static_cast<uint8_t>(r.scalars.size());
  p[10] = static_cast<uint8_t>(r.flags);
  p[11] = static_cast<uint8_t>(r.flags >> 8);
  put32(p + 12, r.step);
  put32(p + 16, n_synced);
  put_float(p + 20, r.lr);
  put_float(p + 24, r.decay);
  put_float(p + 28, r.loss);
  put_float(p + 32, r.loss_plus);
  put_float(p + 36, r.loss_minus);
  for (size_t i = 0; i < r.scalars.size(); ++i) put_float(p + record_bytes + 4 * i, r.scalars[i]);
  const auto n = static_cast<int64_t>(out->size());
  put32(p + 4, crc32c(p + 8, n - 8, salt));
  put32(p, chain_of(p, n, previous));
}

std::vector<uint8_t> encode_header(const std::string& json, uint64_t salt) {
  const size_t padded = (json.size() + 3) / 4 * 4;
  std::vector<uint8_t> h(head_bytes + padded + 4);
  std::memcpy(h.data(), magic, sizeof magic);
  put32(&h[8], version);
  put32(&h[12], static_cast<uint32_t>(json.size()));
  put32(&h[16], static_cast<uint32_t>(salt));
  put32(&h[20], static_cast<uint32_t>(salt >> 32));
  std::memcpy(h.data() + head_bytes, json.data(), json.size());
  put32(&h[head_bytes + padded], crc32c(h.data(), static_cast<int64_t>(head_bytes + padded)));
  return h;
}

JournalState read_header(const File& file) {
  const int64_t size = file.size();
  if (size < head_bytes + 4)
    bad(file.path(), std::to_string(size) + " bytes, expected a header of at least " +
                         std::to_string(head_bytes + 4) + "; an interrupted copy, or not a journal?");
  std::vector<uint8_t> h(head_bytes);
  file.read(h.data(), head_bytes, 0);
  if (std::memcmp(h.data(), magic, sizeof magic) != 0)
    bad(file.path(), "other bytes where a journal's magic should be; not a journal, or copied as text?");
  if (get32(&h[8]) != version)
    bad(file.path(), "journal version " + std::to_string(get32(&h[8])) + ", expected " +
                         std::to_string(version) + "; written by another release?");
  JournalState s;
  const uint32_t n_json = get32(&h[12]);
  const int64_t padded = (int64_t{n_json} + 3) / 4 * 4;
  if (n_json > max_json_bytes || head_bytes + padded + 4 > size)
    bad(file.path(), "a header of " + std::to_string(n_json) + " bytes in a file of " + std::to_string(size) +
                         ", expected it inside the file; damaged, or an interrupted copy?");
  h.resize(static_cast<size_t>(head_bytes + padded + 4));
  file.read(h.data() + head_bytes, padded + 4, head_bytes);
  s.header_checksum = s.tail_checksum = get32(&h[static_cast<size_t>(head_bytes + padded)]);
  if (crc32c(h.data(), head_bytes + padded) != s.tail_checksum)
    bad(file.path(), "the header's checksum is wrong; the file is damaged");
  s.header_json.assign(reinterpret_cast<const char*>(h.data()) + head_bytes, n_json);
  if (!is_utf8(s.header_json)) bad(file.path(), "a header that is not UTF-8, expected JSON; damaged?");
  s.salt = get32(&h[16]) | uint64_t{get32(&h[20])} << 32;
  s.n_bytes = static_cast<int64_t>(h.size());
  return s;
}

// A moving view of the file: at least max_record_bytes from any offset, where the file has them.
class Window {
 public:
  explicit Window(const File& file)
      : file_(file), size_(file.size()), bytes_(static_cast<size_t>(std::min(window_bytes, size_))) {}
  int64_t size() const { return size_; }
  const uint8_t* at(int64_t offset, int64_t* n_left) {
    *n_left = std::min(size_ - offset, max_record_bytes);
    if (offset < begin_ || offset + *n_left > end_) {
      begin_ = offset;
      end_ = std::min(size_, offset + window_bytes);
      file_.read(bytes_.data(), end_ - begin_, begin_);
    }
    return bytes_.data() + (offset - begin_);
  }

 private:
  static constexpr int64_t window_bytes = 1 << 20;
  const File& file_;
  int64_t size_, begin_ = 0, end_ = 0;
  std::vector<uint8_t> bytes_;
};

JournalState scan(const File& file, const OnRecord& on_record) {
  JournalState s = read_header(file);
  const uint32_t salt = salt_crc(s.salt);
  Window window(file);
  Record record;
  int64_t n_left = 0;
  while (s.n_bytes < window.size()) {
    const uint8_t* p = window.at(s.n_bytes, &n_left);
    const int64_t n = intact(p, n_left, salt, s.n_records);
    if (n == 0 || chain_of(p, n, s.tail_checksum) != get32(p)) break;
    s.tail_checksum = get32(p);
    s.n_bytes += n;
    ++s.n_records;
    if (on_record) {
      decode(p, &record);
      on_record(record, s.tail_checksum);
    }
  }
  s.dropped_bytes = window.size() - s.n_bytes;
  for (int64_t o = s.n_bytes; o + record_bytes <= window.size(); o += 4) {
    const uint8_t* p = window.at(o, &n_left);
    if (intact(p, n_left, salt, UINT32_MAX) && get32(p + 16) > s.n_records)
      bad(file.path(), "record " + std::to_string(s.n_records) + " at byte " + std::to_string(s.n_bytes) +
                           " is not valid, but the record at byte " + std::to_string(o) +
                           " was written after it had been synced; the file "
                           "is damaged (not by a crash). Nothing was changed; restore a copy");
  }
  return s;
}

uint64_t random_salt() {
  std::random_device d;
  const uint64_t salt = uint64_t{d()} << 32 | d();
  return salt ? salt : 1;
}

}  // namespace

JournalState read_journal(const std::string& path, const OnRecord& on_record) {
  return scan(File::open(path, Open::read), on_record);
}

int64_t fork_journal(const std::string& from, const std::string& to, uint32_t step) {
  if (file_exists(to)) fail<IoError>("journal", "'" + to + "' exists, expected none; choose another folder");
  int64_t after = 0, n_records = 0;
  uint32_t last = 0;
  const JournalState state = read_journal(from, [&](const Record& r, uint32_t) {
    if (r.step > step) after += record_bytes + 4 * static_cast<int64_t>(r.scalars.size());
    n_records += r.step <= step;
    last = r.step;
  });
  check<ArgumentError>(step >= 1 && step <= last, "fork",
                       "step " + std::to_string(step) + ", expected 1 to " + std::to_string(last) +
                           ", those of '" + from + "'");
  std::vector<uint8_t> bytes(static_cast<size_t>(state.n_bytes - after));
  File::open(from, Open::read).read(bytes.data(), static_cast<int64_t>(bytes.size()), 0);
  write_atomically(to, [&](File& f) { f.write(bytes.data(), static_cast<int64_t>(bytes.size()), 0); });
  return n_records;
}

Journal::Journal(File file, JournalState state)
    : file_(std::move(file)),
      state_(std::move(state)),
      n_synced_(state_.n_records),
      tail_there_(state_.dropped_bytes > 0) {}

Journal Journal::create(const std::string& path, const std::string& header_json, uint64_t salt) {
  check<ArgumentError>(header_json.size() <= max_json_bytes, "journal", "a header of more than 64 MiB");
  if (file_exists(path))
    fail<IoError>("journal",
                  "'" + path + "' exists, expected none; resume that run, or choose another folder");
  const auto h = encode_header(header_json, salt ? salt : random_salt());
  // A header is there whole or not at all.
  write_atomically(path, [&](File& f) { f.write(h.data(), static_cast<int64_t>(h.size()), 0); });
  return open(path);
}

Journal Journal::open(const std::string& path, const OnRecord& on_record) {
  File file = File::open(path, Open::edit);
  JournalState state = scan(file, on_record);
  // What was read may still be in memory only: a process that died did not sync it, and the records are about
  // to be built on (I2).
  file.sync();
  return Journal(std::move(file), std::move(state));
}

void Journal::require_usable() const {
  if (!usable_)
    fail<IoError>(
        "journal",
        "'" + file_.path() +
            "' failed before, so what it holds is unknown to this process; expected it to be opened again");
}

void Journal::remove_tail() {
  file_.truncate(state_.n_bytes);
  // Before anything is written there: else a crash could leave a new record in front of an old one.
  file_.sync();
  tail_there_ = false;
}

void Journal::append(const Record& record) {
  require_usable();
  check<ArgumentError>(record.scalars.size() <= max_scalars, "journal",
                       std::to_string(record.scalars.size()) + " scalars, expected at most 255");
  const auto kind = static_cast<uint8_t>(record.kind);
  check<ArgumentError>(kind >= 1 && kind <= last_kind, "journal",
                       "record kind " + std::to_string(kind) + ", expected 1 to 15");
  encode(record, static_cast<uint32_t>(n_synced_), salt_crc(state_.salt), state_.tail_checksum, &buffer_);
  try {
    if (tail_there_) remove_tail();
    file_.write(buffer_.data(), static_cast<int64_t>(buffer_.size()), state_.n_bytes);
  } catch (const Error&) {
    usable_ = false;
    try {
      file_.truncate(state_.n_bytes);
    } catch (const Error&) {  // the partial record is a tail, which the next open drops
    }
    throw;
  }
  state_.tail_checksum = get32(buffer_.data());
  state_.n_bytes += static_cast<int64_t>(buffer_.size());
  ++state_.n_records;
}

void Journal::sync() {
  require_usable();
  if (n_synced_ == state_.n_records) return;
  try {
    file_.sync();
  } catch (const Error&) {
    usable_ = false;
    throw;
  }
  n_synced_ = state_.n_records;
}

}  // namespace smezo
