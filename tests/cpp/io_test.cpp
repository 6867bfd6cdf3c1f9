// Files, locks, checksums and JSON: on the real file system and on the simulated one.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "base/error.h"
#include "crash_simulator.h"
#include "io/crc32c.h"
#include "io/file.h"
#include "io/json.h"
#include "test.h"

using namespace smezo;
using smezo_test::CrashSimulator;
using smezo_test::PowerLoss;

namespace {

// A folder that is removed with what is in it.
struct Scratch {
  std::string path;
  Scratch() {
    path = (std::filesystem::temp_directory_path() / "smezo_io_XXXXXX").string();
    if (!mkdtemp(path.data())) fail<IoError>("test", "no scratch folder");
  }
  ~Scratch() {
    for (const auto& name : list_folder(path)) {
      if (file_exists(join(path, name)))
        remove_file(join(path, name));
      else
        rmdir(join(path, name).c_str());
    }
    rmdir(path.c_str());
  }
};

Json parse(const std::string& text) { return Json::parse(text, "test"); }

}  // namespace

TEST(crc32c_is_the_same_with_and_without_an_instruction) {
  std::vector<uint8_t> bytes(1000);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i * i * 31 + 7);
  for (int64_t n = 0; n < 1000; n += n < 40 ? 1 : 37) {
    const int64_t at = n % 9;
    CHECK(crc32c(bytes.data() + at, n - at, 5) == crc32c_by_table(bytes.data() + at, n - at, 5) || n < at);
  }
}

TEST(crc32c_known_answers) {
  CHECK(crc32c("123456789", 9) == 0xe3069283u);
  CHECK(crc32c("", 0) == 0);
  // RFC 3720, B.4.
  uint8_t b[32] = {};
  CHECK(crc32c(b, 32) == 0x8a9136aau);
  std::memset(b, 0xff, 32);
  CHECK(crc32c(b, 32) == 0x62a8ab43u);
  for (int i = 0; i < 32; ++i) b[i] = static_cast<uint8_t>(i);
  CHECK(crc32c(b, 32) == 0x46dd794eu);
}

TEST(crc32c_in_pieces_and_bit_by_bit) {
  std::vector<uint8_t> b(100);
  for (size_t i = 0; i < b.size(); ++i) b[i] = static_cast<uint8_t>(i * 37 + 11);
  for (int64_t n = 0; n <= 100; ++n) {
    uint32_t c = ~0u;
    for (int64_t i = 0; i < n; ++i) {
      c ^= b[static_cast<size_t>(i)];
      for (int k = 0; k < 8; ++k) c = (c >> 1) ^ ((c & 1) ? 0x82F63B78u : 0);
    }
    CHECK(crc32c(b.data(), n) == ~c);
    CHECK(crc32c(b.data() + n / 3, n - n / 3, crc32c(b.data(), n / 3)) == ~c);
  }
}

TEST(file_round_trip_on_the_operating_system) {
  const Scratch s;
  const std::string path = join(s.path, "f");
  write_atomically(path, "hello");
  CHECK(read_all(path) == "hello");
  write_atomically(path, "other");
  CHECK(read_all(path) == "other");
  CHECK(list_folder(s.path).size() == 1);
  const File f = File::open(path, Open::read);
  const Map m(f);
  CHECK(m.size() == 5 && std::memcmp(m.data(), "other", 5) == 0);
  m.dont_need(0, 5);
  CHECK(m.data()[4] == 'r');
  char b[8];
  CHECK_THROWS(IoError, "is truncated: it ends at byte 5, expected 3 more", f.read(b, 8, 0));
  write_atomically(join(s.path, "empty"), "");
  CHECK(Map(File::open(join(s.path, "empty"), Open::read)).data() == nullptr);
}

TEST(file_errors_carry_path_and_reason) {
  const Scratch s;
  CHECK_THROWS(IoError, "none': No such file or directory", File::open(join(s.path, "none"), Open::read));
  CHECK_THROWS(IoError, "Is a directory", File::open(s.path, Open::read));
  write_atomically(join(s.path, "f"), "x");
  CHECK_THROWS(IoError, "File exists", File::open(join(s.path, "f"), Open::create));
  CHECK_THROWS(IoError, "is a file, expected a folder", make_folders(join(s.path, "f")));
  CHECK_THROWS(IoError, "cannot create", write_atomically(join(s.path, "no/f"), "x"));
  CHECK_THROWS(IoError, "cannot write", File::open(join(s.path, "f"), Open::read).write("x", 1, 0));
}

TEST(paths) {
  CHECK(parent_folder("a") == ".");
  CHECK(parent_folder("a/b") == "a");
  CHECK(parent_folder("a/b/") == "a");
  CHECK(parent_folder("/a") == "/");
  CHECK(parent_folder("/") == "/");
  CHECK(join("a", "b") == "a/b" && join("a/", "b") == "a/b" && join("", "b") == "b");
}

TEST(a_fill_that_throws_leaves_the_old_file) {
  const Scratch s;
  const std::string path = join(s.path, "f");
  write_atomically(path, "old");
  CHECK_THROWS(ArgumentError, "no", write_atomically(path, [](File& f) {
                 f.write("new", 3, 0);
                 fail<ArgumentError>("test", "no");
               }));
  CHECK(read_all(path) == "old");
  CHECK(list_folder(s.path).size() == 1);
}

TEST(full_disk_says_how_many_bytes) {
  CrashSimulator disk(1, {.capacity = 100});
  write_atomically("old", std::string(40, 'o'));
  CHECK_THROWS(IoError, "needed 940 more bytes, the disk has 0 free",
               write_atomically("f", std::string(1000, 'x')));
  CHECK(!file_exists("f"));
  CHECK(list_folder(".").size() == 1);
}

TEST(write_atomically_under_power_cuts) {
  int64_t crashes = 0, kept_new = 0;
  for (uint64_t seed = 0; seed < 200; ++seed) {
    for (int64_t at = 1;; ++at) {
      CrashSimulator disk(seed * 100 + static_cast<uint64_t>(at), {.sector_bytes = 16});
      make_folders("a/b");
      write_atomically("a/b/f", std::string(100, 'o'));
      bool done = false;
      disk.crash_at(at);
      try {
        write_atomically("a/b/f", std::string(120, 'n'));
        done = true;
      } catch (const PowerLoss&) {
        ++crashes;
      }
      disk.reboot();
      const std::string found = read_all("a/b/f");
      CHECK(found == std::string(120, 'n') || (!done && found == std::string(100, 'o')));
      kept_new += found[0] == 'n';
      remove_temporaries("a/b");
      CHECK(list_folder("a/b").size() == 1);
      if (done) break;
    }
  }
  CHECK(crashes == 200 * 5);  // create, write, sync, rename, sync of the folder
  CHECK(kept_new > 200);
}

TEST(control_without_sync_old_and_new_are_lost) {
  int64_t lost = 0;
  for (uint64_t seed = 0; seed < 200; ++seed) {
    CrashSimulator disk(seed);
    write_atomically("f", "old");
    disk.device().sync_works = disk.device().sync_folder_works = false;
    write_atomically("f", "new");
    disk.reboot();
    lost += !file_exists("f") || (read_all("f") != "new");
  }
  CHECK(lost > 50);
}

TEST(run_lock_is_for_one_process) {
  const Scratch s;
  write_atomically(join(s.path, "journal.smz"), "x");
  write_atomically(join(s.path, "delta.tmp-12-3"), "half");
  write_atomically(join(s.path, "notes.tmp-mine"), "keep");
  {
    const RunLock lock(s.path);
    CHECK(!file_exists(join(s.path, "delta.tmp-12-3")));
    CHECK(file_exists(join(s.path, "notes.tmp-mine")));
    const std::string owner = "is in use by process " + std::to_string(getpid());
    CHECK_THROWS(ArgumentError, owner.c_str(), RunLock again(s.path));
    const pid_t child = fork();
    if (child == 0) {
      try {
        const RunLock other(s.path);
        _exit(1);
      } catch (const ArgumentError&) {
        _exit(0);
      }
    }
    int status = -1;
    waitpid(child, &status, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
  const RunLock free_again(s.path);
}

TEST(json_values) {
  const Json j = parse(R"( {"a": [1, -2, 9223372036854775807, -9223372036854775808], )"
                       R"("b": 1.5e3, "c": "x\u00e9\ud83d\ude00\n", "d": [true, false, null], "e": {}} )");
  const auto& a = j.at("a", "a").as_array("a");
  CHECK(a[0].as_int("") == 1 && a[1].as_int("") == -2 && a[2].as_int("") == INT64_MAX &&
        a[3].as_int("") == INT64_MIN);
  CHECK(j.at("b", "").as_double("") == 1500.0 && !j.at("b", "").is_int());
  CHECK(j.at("c", "").as_string("") == "x\xc3\xa9\xf0\x9f\x98\x80\n");
  CHECK(j.at("d", "").as_array("")[0].as_bool("") && j.at("d", "").as_array("")[2].is_null());
  CHECK(j.find("z") == nullptr);
  CHECK_THROWS(FormatError, "config has no key 'z'", j.at("z", "config"));
  CHECK_THROWS(FormatError, "b is a number, expected an integer", j.at("b", "b").as_int("b"));
  CHECK(!parse("9223372036854775808").is_int() &&
        parse("9223372036854775808").as_double("") == 9223372036854775808.0);
  CHECK(!parse("-0").is_int() && !parse("1.0").is_int() && !parse("1e2").is_int());
  CHECK(parse("5e-324").as_double("") == 5e-324);
}

TEST(json_refuses) {
  for (const char* text : {"",
                           " ",
                           "{",
                           "[1,",
                           "[1,]",
                           "{\"a\":1,}",
                           "{\"a\"}",
                           "{a:1}",
                           "{'a':1}",
                           "01",
                           "-",
                           "1.",
                           ".5",
                           "1e",
                           "+1",
                           "0x1",
                           "NaN",
                           "Infinity",
                           "-Infinity",
                           "tru",
                           "nul",
                           "\"a",
                           "\"\\x\"",
                           "\"\\u12\"",
                           "\"\\u12g4\"",
                           "\"\\ud800\"",
                           "\"\\udc00\"",
                           "\"\\ud800\\u0041\"",
                           "\"\t\"",
                           "1 2",
                           "// c\n1",
                           "1e999",
                           "[1}",
                           "{\"a\":1]",
                           "\"\xff\"",
                           "\"\xc0\x80\"",
                           "\"\xed\xa0\x80\"",
                           "\"\xf5\x80\x80\x80\"",
                           "\"\xe2\x82\"",
                           "\xef\xbb\xbf{}"}) {
    CHECK_THROWS(FormatError, "[json] test, byte", parse(text));
  }
  CHECK_THROWS(FormatError, "'a' stands twice", parse(R"({"a":1,"b":2,"a":3})"));
  CHECK_THROWS(FormatError, "'a' stands twice", parse(R"({"a":1,"\u0061":3})"));
  CHECK_THROWS(FormatError, "nested deeper than 64", parse(std::string(100000, '[')));
  CHECK_THROWS(FormatError, "nested deeper than 64", parse(std::string(66, '[') + std::string(66, ']')));
  CHECK(parse(std::string(65, '[') + std::string(65, ']')).is_array());
}

TEST(json_every_cut_and_every_byte_is_handled) {
  const std::string text = R"({"a":[1,2.5,{"b":"\u00e9x"}],"c":null,"d":true})";
  for (size_t n = 0; n < text.size(); ++n) CHECK_THROWS(FormatError, "", parse(text.substr(0, n)));
  int n_accepted = 0;
  for (size_t at = 0; at < text.size(); ++at) {
    for (int byte = 0; byte < 256; ++byte) {
      std::string changed = text;
      changed[at] = static_cast<char>(byte);
      try {
        const Json j = parse(changed);
        CHECK(parse(j.dump()).dump() == j.dump());
        ++n_accepted;
      } catch (const FormatError&) {
      }
    }
  }
  CHECK(n_accepted > 0);
}

TEST(json_writer) {
  Json j;
  j.set("z", 1);
  j.set("a", "q\"\\\n\x01\xc3\xa9");
  j.set("n", 0.1);
  j.set("one", 1.0);
  j.set("big", 1e300);
  Json list;
  list.push(true);
  list.push(Json());
  j.set("list", list);
  j.set("z", int64_t{-5});
  CHECK(j.dump() ==
        "{\"z\":-5,\"a\":\"q\\\"\\\\\\u000a\\u0001\xc3\xa9\",\"n\":0.1,\"one\":1.0,\"big\":1e+300,\"list\":["
        "true,null]}");
  CHECK(parse(j.dump()).dump() == j.dump());
  CHECK_THROWS(ArgumentError, "not finite", Json(0.0 / 0.0).dump());
  CHECK_THROWS(ArgumentError, "UTF-8", Json("\xff").dump());
}

TEST_MAIN()
