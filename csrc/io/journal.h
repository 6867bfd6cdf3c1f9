// The journal: the list of records that, with the base, is the run. Append is commit.
//
// All numbers are little-endian; fp32 is IEEE-754 binary32, stored bit for bit (a NaN keeps its payload).
// crc(...) is CRC-32C of the bytes named, in that order (io/crc32c.h).
//
// clang-format off
// FILE HEADER
//   offset  size  field
//        0     8  magic: 73 6d 65 7a 6f 4a 0d 0a ("smezoJ\r\n")
//        8     4  version: 1
//       12     4  m: bytes of the JSON header
//       16     8  salt: drawn at random for this file
//       24     m  JSON header, UTF-8
//     24+m     p  zeros, 0..3, up to a multiple of 4
//   24+m+p     4  crc(bytes 0 .. 24+m+p)
//
// RECORD, 40 + 4 n bytes, begins at a multiple of 4
//   offset  size  field
//        0     4  chain: crc(previous chain, bytes 4 .. end of this record)
//        4     4  self: crc(salt, bytes 8 .. end of this record)
//        8     1  kind: 1 step, 2 skipped; 1..15 are valid
//        9     1  n: number of scalars
//       10     2  flags
//       12     4  step
//       16     4  n_synced: records of this file that were on the device when this record was written
//       20     4  lr, fp32
//       24     4  decay, fp32: the weight-decay coefficient lr * lambda
//       28     4  loss, fp32: mean over branches
//       32     4  loss_plus, fp32
//       36     4  loss_minus, fp32
//       40   4 n  scalars, fp32
//
// Records follow the header without gaps. The first record's previous chain is the header's crc; "previous
// chain" and "salt" enter a checksum as the 4 and 8 bytes that stand in the file.
//
// A record is intact if it lies wholly inside the file, its kind is 1..15, and self is right. It is valid if
// and only if
//   (1) it is intact, and n_synced is at most the number of records before it;
//   (2) chain is right, and the record before it (if any) is valid.
//
// Let k be the number of valid records from the front and o the offset after them. The bytes from o on are
//   - nothing: the journal is whole;
//   - damage, if at any multiple of 4 from o on there is an intact record whose n_synced is more than k: it
//     says that record k was on the device, so no crash took it. A reader refuses such a file, and nobody
//     changes it;
//   - else a tail: appends that a crash caught before their sync. A reader ignores it; a writer removes it
//     before its first append.
// With one sync a record, "damage" is: a bad record followed by an intact one. With fewer syncs a power cut may
// keep a later record and lose an earlier one of the same window, which is no damage: neither was promised.
// clang-format on
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "io/file.h"

namespace smezo {

constexpr int64_t kRecordHeadBytes = 40;  // of a record, before its scalars

enum class RecordKind : uint8_t { step = 1, skipped = 2 };

struct Record {
  RecordKind kind = RecordKind::step;
  uint16_t flags = 0;
  uint32_t step = 0;
  float lr = 0;
  float decay = 0;
  float loss = 0, loss_plus = 0, loss_minus = 0;
  std::vector<float> scalars;  // at most 255
};

// What a reading found.
struct JournalState {
  std::string header_json;
  uint64_t salt = 0;
  int64_t n_records = 0;
  int64_t n_bytes = 0;        // to the end of the last valid record
  int64_t dropped_bytes = 0;  // the tail after it
  uint32_t header_checksum = 0;
  uint32_t tail_checksum = 0;  // chain of the last record, or the header's crc: names a point of this journal
};

// The callback sees valid records in order; the Record it is given is reused. It may see some before damage
// further on is found.
using OnRecord = std::function<void(const Record& record, uint32_t chain)>;

// Reads, never writes. FormatError: not a journal, another version, damage. IoError.
JournalState read_journal(const std::string& path, const OnRecord& on_record = {});

// Writes a new journal that ends with the record of `step`: the same run up to there, which may then go
// another way. IoError if the file exists; ArgumentError: no such step. Returns its records.
int64_t fork_journal(const std::string& from, const std::string& to, uint32_t step);

class Journal {
 public:
  // IoError if the file exists. On return the empty journal and its name are on the device. salt 0: drawn
  // from the operating system.
  static Journal create(const std::string& path, const std::string& header_json, uint64_t salt = 0);
  // read_journal, then ready to append; every record found is synced.
  static Journal open(const std::string& path, const OnRecord& on_record = {});
  // False once an append or a sync failed: what is on the device is then unknown, so this object refuses all
  // further work (IoError) and the file has to be opened again.
  bool usable() const { return usable_; }

  // One write, not synced. IoError: if the disk is full, the part that was written is removed again where
  // that is possible.
  void append(const Record& record);
  void sync();  // does nothing when all is synced

  const std::string& path() const { return file_.path(); }
  const JournalState& state() const { return state_; }
  const std::string& header_json() const { return state_.header_json; }
  uint64_t salt() const { return state_.salt; }
  int64_t n_records() const { return state_.n_records; }
  int64_t n_synced() const { return n_synced_; }  // records known to be on the device
  uint32_t tail_checksum() const { return state_.tail_checksum; }
  int64_t dropped_bytes() const {
    return state_.dropped_bytes;
  }  // the tail that open() found; removed by the first append

 private:
  Journal(File file, JournalState state);
  void require_usable() const;
  void remove_tail();
  File file_;
  JournalState state_;
  int64_t n_synced_ = 0;
  bool tail_there_ = false;
  bool usable_ = true;
  std::vector<uint8_t> buffer_;
};

}  // namespace smezo
