// The journal: round trip, every torn tail, damage, refusals, a full disk, thousands of power cuts, and a
// control that must lose records.
#include "io/journal.h"

#include <bit>
#include <chrono>
#include <cmath>
#include <cstdlib>

#include "base/error.h"
#include "crash_simulator.h"
#include "io/file.h"
#include "test.h"

using namespace smezo;
using smezo_test::CrashSimulator;
using smezo_test::Device;
using smezo_test::PowerLoss;

namespace {

const std::string header_json = R"({"method":"SparseMeZO","seed":7})";
constexpr uint64_t test_salt = 0x1122334455667788;

// Record i of every test; bits that a careless reader would change are among them (-0, a NaN with a payload,
// a subnormal).
Record record_of(int64_t i) {
  Record r;
  r.kind = i % 7 == 3 ? RecordKind::skipped : RecordKind::step;
  r.flags = static_cast<uint16_t>(i * 257);
  r.step = static_cast<uint32_t>(i);
  r.lr = 1e-3f / static_cast<float>(i + 1);
  r.decay = i % 2 ? 0.0f : 1e-5f;
  r.loss = 0.5f + static_cast<float>(i);
  r.loss_plus = std::bit_cast<float>(0x7fc12345u);
  r.loss_minus = -0.0f;
  for (int64_t k = 0; k < i % 4; ++k)
    r.scalars.push_back(std::bit_cast<float>(static_cast<uint32_t>(0x00000001 + 77 * k + i)));
  return r;
}

uint32_t bits(float f) { return std::bit_cast<uint32_t>(f); }

bool same(const Record& a, const Record& b) {
  bool ok = a.kind == b.kind && a.flags == b.flags && a.step == b.step && bits(a.lr) == bits(b.lr) &&
            bits(a.decay) == bits(b.decay) && bits(a.loss) == bits(b.loss) &&
            bits(a.loss_plus) == bits(b.loss_plus) && bits(a.loss_minus) == bits(b.loss_minus) &&
            a.scalars.size() == b.scalars.size();
  for (size_t k = 0; ok && k < a.scalars.size(); ++k) ok = bits(a.scalars[k]) == bits(b.scalars[k]);
  return ok;
}

int64_t bytes_of(int64_t i) { return 40 + 4 * (i % 4); }

// A journal of n records, each synced. The device is kept.
void write_records(const std::string& path, int64_t n, int64_t sync_every = 1) {
  Journal j = Journal::create(path, header_json, test_salt);
  for (int64_t i = 0; i < n; ++i) {
    j.append(record_of(i));
    if ((i + 1) % sync_every == 0) j.sync();
  }
}

// Number of records read; each is checked to be the one written there.
int64_t count(const std::string& path, int64_t* dropped = nullptr) {
  int64_t n = 0;
  bool ok = true;
  const JournalState s =
      read_journal(path, [&](const Record& r, uint32_t) { ok = ok && same(r, record_of(n++)); });
  CHECK(ok);
  CHECK(n == s.n_records);
  if (dropped) *dropped = s.dropped_bytes;
  return n;
}

std::string golden_path() { return parent_folder(parent_folder(__FILE__)) + "/golden/journal_v1.smz"; }

}  // namespace

TEST(round_trip) {
  CrashSimulator disk(1);
  write_records("j", 50);
  CHECK(count("j") == 50);
  const JournalState s = read_journal("j");
  CHECK(s.header_json == header_json);
  CHECK(s.salt == test_salt);
  CHECK(s.dropped_bytes == 0);
  uint32_t last = 0;
  Journal j = Journal::open("j", [&](const Record&, uint32_t chain) { last = chain; });
  CHECK(j.n_records() == 50 && j.n_synced() == 50);
  CHECK(j.tail_checksum() == last);
  j.append(record_of(50));
  CHECK(j.n_records() == 51 && j.n_synced() == 50);
  j.sync();
  CHECK(j.n_synced() == 51);
  CHECK(count("j") == 51);
}

TEST(record_size_is_within_the_limit) {
  CrashSimulator disk(1);
  Journal j = Journal::create("j", "", test_salt);
  const size_t before = disk.bytes("j").size();
  CHECK(before == 28);
  Record r;
  r.scalars.assign(255, 1.5f);
  j.append(r);
  CHECK(disk.bytes("j").size() - before <= 48 + 4 * 255);
  r.scalars.push_back(0);
  CHECK_THROWS(ArgumentError, "256 scalars", j.append(r));
  CHECK(j.usable());
}

// The same bytes for ever: tests/test_journal.py reads this file with a reader that shares no code.
TEST(golden_file_is_written_byte_for_byte) {
  const std::string golden = read_all(golden_path());
  CrashSimulator disk(1);
  write_records("j", 12, 3);
  const auto& b = disk.bytes("j");
  CHECK(std::string(b.begin(), b.end()) == golden);
}

TEST(a_journal_that_exists_is_not_overwritten) {
  CrashSimulator disk(1);
  write_records("j", 3);
  CHECK_THROWS(IoError, "exists", Journal::create("j", header_json));
  CHECK(count("j") == 3);
}

TEST(salts_differ) {
  CrashSimulator disk(1);
  CHECK(Journal::create("a", header_json).salt() != Journal::create("b", header_json).salt());
}

TEST(torn_tail_at_every_byte) {
  CrashSimulator disk(1);
  write_records("j", 6);
  const std::vector<uint8_t> whole = disk.bytes("j");
  int64_t header = static_cast<int64_t>(whole.size());
  for (int64_t i = 0; i < 6; ++i) header -= bytes_of(i);
  for (int64_t cut = header; cut < static_cast<int64_t>(whole.size()); ++cut) {
    disk.bytes("j").assign(whole.begin(), whole.begin() + cut);
    int64_t expected = 0, end = header;
    while (expected < 6 && end + bytes_of(expected) <= cut) end += bytes_of(expected++);
    int64_t dropped = -1;
    CHECK(count("j", &dropped) == expected);
    CHECK(dropped == cut - end);
    Journal j = Journal::open("j");
    CHECK(j.dropped_bytes() == cut - end);
    CHECK(static_cast<int64_t>(disk.bytes("j").size()) == cut);  // opening changes nothing
    j.append(record_of(expected));
    j.sync();
    CHECK(count("j", &dropped) == expected + 1);
    CHECK(dropped == 0);
  }
}

TEST(a_tail_longer_than_a_record_is_removed_before_the_first_append) {
  CrashSimulator disk(1);
  write_records("j", 3);
  auto& b = disk.bytes("j");
  const size_t whole = b.size();
  b.insert(b.end(), 501, uint8_t{0xa5});
  Journal j = Journal::open("j");
  CHECK(j.dropped_bytes() == 501);
  j.append(record_of(3));
  CHECK(b.size() == whole + static_cast<size_t>(bytes_of(3)));
}

TEST(cut_in_the_header_is_refused) {
  CrashSimulator disk(1);
  write_records("j", 1);
  const std::vector<uint8_t> whole = disk.bytes("j");
  for (size_t cut = 0; cut < whole.size() - static_cast<size_t>(bytes_of(0)); ++cut) {
    disk.bytes("j").assign(whole.begin(), whole.begin() + static_cast<int64_t>(cut));
    CHECK_THROWS(FormatError, "expected", read_journal("j"));
  }
}

TEST(flipped_bit_before_a_later_record_is_damage) {
  CrashSimulator disk(1);
  write_records("j", 8);
  const std::vector<uint8_t> whole = disk.bytes("j");
  for (size_t byte = 0; byte < whole.size(); ++byte) {
    auto& b = disk.bytes("j");
    b = whole;
    b[byte] ^= static_cast<uint8_t>(1u << (byte % 8));
    const auto flipped = b;
    if (byte < whole.size() - static_cast<size_t>(bytes_of(7))) {
      CHECK_THROWS(FormatError, "", Journal::open("j"));
      CHECK(disk.bytes("j") == flipped);  // never repaired
    } else {
      CHECK(count("j") == 7);  // in the last record it cannot be told from a torn write
    }
  }
}

TEST(a_record_removed_from_the_middle_is_damage) {
  CrashSimulator disk(1);
  write_records("j", 8);
  auto& b = disk.bytes("j");
  // Records 3..7 begin here, counted from the end.
  const int64_t at =
      static_cast<int64_t>(b.size()) - (bytes_of(3) + bytes_of(4) + bytes_of(5) + bytes_of(6) + bytes_of(7));
  b.erase(b.begin() + at, b.begin() + at + bytes_of(3));
  CHECK_THROWS(FormatError, "record 3", read_journal("j"));
}

TEST(unsynced_record_lost_before_a_kept_one_is_a_tail) {
  CrashSimulator disk(1);
  write_records("j", 8, 4);
  auto& b = disk.bytes("j");
  const int64_t at = static_cast<int64_t>(b.size()) - (bytes_of(5) + bytes_of(6) + bytes_of(7));
  std::fill(b.begin() + at, b.begin() + at + bytes_of(5), uint8_t{0});
  int64_t dropped = 0;
  CHECK(count("j", &dropped) == 5);
  CHECK(dropped == bytes_of(5) + bytes_of(6) + bytes_of(7));
}

// Only the chain tells: the record that follows is intact and promises nothing about the one that is gone.
TEST(a_record_after_a_missing_one_is_not_taken) {
  CrashSimulator disk(1);
  write_records("j", 8, 4);
  auto& b = disk.bytes("j");
  const int64_t at = static_cast<int64_t>(b.size()) - (bytes_of(5) + bytes_of(6) + bytes_of(7));
  b.erase(b.begin() + at, b.begin() + at + bytes_of(5));
  CHECK(count("j") == 5);
}

// A process that died left records in the page cache; who opens the journal builds on them, so they must be
// kept.
TEST(I2_open_syncs_what_it_found) {
  CrashSimulator disk(3);
  write_records("j", 5, 100);
  const int64_t n = Journal::open("j").n_synced();
  CHECK(n == 5);
  disk.reboot();
  CHECK(count("j") == 5);
}

TEST(records_of_another_journal_are_not_taken) {
  CrashSimulator disk(1);
  write_records("a", 4);
  Journal b = Journal::create("b", header_json, test_salt + 1);
  const auto& from = disk.bytes("a");
  auto& to = disk.bytes("b");
  to.insert(to.end(), from.begin() + static_cast<int64_t>(to.size()), from.end());
  int64_t dropped = 0;
  CHECK(count("b", &dropped) == 0);
  CHECK(dropped > 0);
}

TEST(foreign_and_newer_headers_are_refused) {
  CrashSimulator disk(1);
  write_records("j", 2);
  disk.bytes("j")[8] = 2;
  CHECK_THROWS(FormatError, "journal version 2, expected 1", read_journal("j"));
  disk.bytes("j")[0] = 'S';
  CHECK_THROWS(FormatError, "magic", read_journal("j"));
  disk.bytes("j").clear();
  CHECK_THROWS(FormatError, "0 bytes", read_journal("j"));
  CHECK_THROWS(IoError, "none", read_journal("none"));
}

TEST(full_disk_takes_the_partial_record_back) {
  CrashSimulator disk(1);
  write_records("j", 5);
  Journal j = Journal::open("j");
  const size_t before = disk.bytes("j").size();
  disk.device().capacity = static_cast<int64_t>(before) + 10;
  CHECK_THROWS(IoError, "needed 34 more bytes", j.append(record_of(5)));  // 44 bytes, of which 10 went
  CHECK(disk.bytes("j").size() == before);
  CHECK(!j.usable());
  disk.device().capacity = 1 << 20;
  CHECK_THROWS(IoError, "opened again", j.append(record_of(5)));
  CHECK_THROWS(IoError, "opened again", j.sync());
  Journal again = Journal::open("j");
  again.append(record_of(5));
  again.sync();
  CHECK(count("j") == 6);
}

TEST(failed_sync_ends_the_object) {
  CrashSimulator disk(1);
  Journal j = Journal::create("j", header_json);
  j.append(record_of(0));
  disk.fail_next_sync();
  CHECK_THROWS(IoError, "cannot sync", j.sync());
  CHECK_THROWS(IoError, "opened again", j.sync());
}

TEST(short_writes_are_continued) {
  CrashSimulator disk(1);
  disk.shorten_writes(7);
  write_records("j", 5);
  CHECK(count("j") == 5);
}

namespace {

struct Losses {
  int64_t crashes = 0, lost = 0, unreadable = 0;
};

// Runs of 24 records on one disk, each cut off at a chosen operation and resumed, until the run is through.
Losses crash_many(Device device, int64_t sync_every, int n_seeds) {
  Losses losses;
  for (int seed = 0; seed < n_seeds; ++seed) {
    for (int64_t crash = 1; crash <= 24; ++crash) {
      CrashSimulator disk(static_cast<uint64_t>(seed) * 1000 + static_cast<uint64_t>(crash), device);
      int64_t kept = -1;  // records that were promised; -1: the journal itself was not yet
      for (int life = 0;; ++life) {
        if (life < 6) disk.crash_at(life == 0 ? crash : 1 + (crash * 7 + life * 5 + seed) % 19);
        try {
          make_folders("run");
          Journal j = file_exists("run/j") ? Journal::open("run/j") : Journal::create("run/j", header_json);
          kept = std::max<int64_t>(kept, j.n_records());
          while (j.n_records() < 24) {
            j.append(record_of(j.n_records()));
            if (j.n_records() % sync_every == 0) j.sync();
            kept = std::max(kept, j.n_synced());
          }
          j.sync();
          break;
        } catch (const PowerLoss&) {
        }
        ++losses.crashes;
        disk.reboot();
        int64_t found = -1;
        try {
          if (file_exists("run/j")) found = count("run/j");
        } catch (const FormatError&) {
          ++losses.unreadable;
          break;
        }
        if (found < kept) {
          ++losses.lost;
          break;
        }
      }
    }
  }
  return losses;
}

}  // namespace

TEST(I2_power_cuts_lose_no_synced_record) {
  int64_t crashes = 0;
  for (const int64_t sector : {4, 64, 512}) {
    for (const int64_t sync_every : {1, 5}) {
      Device d;
      d.sector_bytes = sector;
      const Losses l = crash_many(d, sync_every, 12);
      CHECK(l.lost == 0);
      CHECK(l.unreadable == 0);
      crashes += l.crashes;
    }
  }
  std::printf("  %lld power cuts\n", static_cast<long long>(crashes));
  CHECK(crashes > 5000);
}

TEST(control_without_sync_the_simulator_sees_losses) {
  Device d;
  d.sync_works = d.sync_folder_works = false;
  const Losses l = crash_many(d, 1, 4);
  std::printf("  without sync: %lld power cuts, %lld lost, %lld unreadable\n",
              static_cast<long long>(l.crashes), static_cast<long long>(l.lost),
              static_cast<long long>(l.unreadable));
  CHECK(l.lost > l.crashes / 4);
}

TEST(a_million_records_open_fast) {
  CrashSimulator disk(1);
  {
    Journal j = Journal::create("j", header_json);
    Record r;
    r.scalars = {1.0f};
    for (int i = 0; i < 1000000; ++i) {
      r.step = static_cast<uint32_t>(i);
      j.append(r);
      if (i % 1000 == 999) j.sync();
    }
  }
  const auto begin = std::chrono::steady_clock::now();
  int64_t n = 0;
  read_journal("j", [&](const Record& r, uint32_t) { n += r.step == n; });
  const double s = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  std::printf("  1,000,000 records read in %.3f s\n", s);
  CHECK(n == 1000000);
  CHECK(s < 5);
}

TEST_MAIN()
