#include "targets.h"

#include <cstring>
#include <random>

#include "../cpp/checkpoint.h"
#include "../cpp/crash_simulator.h"
#include "base/error.h"
#include "engine/run_header.h"
#include "io/crc32c.h"
#include "io/delta.h"
#include "io/journal.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "model/config.h"
#include "store/base.h"
#include "store/index_file.h"
#include "store/originals.h"

namespace smezo_fuzz {
namespace {

using namespace smezo;

Bytes bytes_of(const std::string& text) { return {text.begin(), text.end()}; }
std::string text_of(const Bytes& b) { return {b.begin(), b.end()}; }
Bytes file(const std::string& path) { return bytes_of(read_all(path)); }

// The simulator is one file system for the whole run: no power is lost here.
smezo_test::CrashSimulator& disk() {
  static smezo_test::CrashSimulator one(0);
  return one;
}
void put(const std::string& path, const Bytes& content) {
  if (!file_exists(path)) write_atomically(path, "x");
  disk().bytes(path) = content;
}

volatile uint64_t kept;  // so that no reading is optimized away
void touch(const void* data, int64_t n_bytes) { kept = crc32c(data, n_bytes); }

const char* const kConfig =
    R"({"model_type":"llama","hidden_size":32,"intermediate_size":48,"num_hidden_layers":1,"num_attention_heads":4,
        "num_key_value_heads":2,"vocab_size":64,"rms_norm_eps":1e-5,"max_position_embeddings":64,
        "rope_scaling":{"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,
        "original_max_position_embeddings":32}})";

// Little-endian fields of a journal are put right from front to back.
void put32(Bytes& b, size_t at, uint32_t v) {
  for (size_t i = 0; i < 4; ++i) b[at + i] = static_cast<uint8_t>(v >> (8 * i));
}
uint32_t get32(const Bytes& b, size_t at) {
  uint32_t v = 0;
  for (size_t i = 0; i < 4; ++i) v |= static_cast<uint32_t>(b[at + i]) << (8 * i);
  return v;
}
void repair_journal(Bytes& b) {
  if (b.size() < 28) return;
  const size_t m = get32(b, 12), head = 24 + (m + 3) / 4 * 4;
  if (m > b.size() || head + 4 > b.size()) return;
  put32(b, head, crc32c(b.data(), static_cast<int64_t>(head)));
  uint32_t chain = get32(b, head);
  const uint32_t salt = crc32c(&b[16], 8);
  for (size_t at = head + 4; at + 40 <= b.size();) {
    const size_t n = 40 + 4 * size_t{b[at + 9]};
    if (at + n > b.size()) return;
    put32(b, at + 4, crc32c(&b[at + 8], static_cast<int64_t>(n - 8), salt));
    chain = crc32c(&b[at + 4], static_cast<int64_t>(n - 4), crc32c(reinterpret_cast<uint8_t*>(&chain), 4));
    put32(b, at, chain);
    at += n;
  }
}

// The length of a safetensors header, where a change has moved its end.
void repair_safetensors(Bytes& b) {
  if (b.size() < 10) return;
  int depth = 0;
  bool quoted = false;
  for (size_t i = 8; i < b.size(); ++i) {
    if (b[i] == '"' && b[i - 1] != '\\') quoted = !quoted;
    if (quoted) continue;
    depth += b[i] == '{' ? 1 : b[i] == '}' ? -1 : 0;
    if (depth > 0) continue;
    const uint64_t n = i + 1 - 8;
    std::memcpy(b.data(), &n, 8);
    return;
  }
}

std::vector<Bytes> json_seeds() {
  return {bytes_of(kConfig),
          bytes_of(R"([1,-2.5e-3,true,false,null,"a\u00e9\ud83d\ude00\n",[],{},{"k":[{"x":1}]}])"),
          bytes_of("9223372036854775807"), bytes_of("1e308")};
}

Bytes safetensors_seed() {
  const float x[6] = {1, 2, 3, 4, 5, 6};
  write_safetensors("seed.safetensors", {{"a.weight", "F32", {2, 3}}, {"b", "I64", {0}}, {"c", "U8", {3}}},
                    {{"format", "pt"}}, [&](SafetensorsSink& s) {
                      s.write(0, x, 24);
                      s.write(2, x, 3);
                    });
  return file("seed.safetensors");
}

void read_all_tensors(const Safetensors& f) {
  for (const TensorEntry& t : f.tensors()) {
    touch(f.data(t), t.n_bytes);
    Bytes copy(static_cast<size_t>(t.n_bytes));
    f.read(t, 0, t.n_bytes, copy.data());
  }
}

Bytes journal_seed(int n_records) {
  remove_file("seed.smz");
  Journal j = Journal::create("seed.smz", R"({"a":1})", 7);
  for (int i = 1; i <= n_records; ++i) {
    Record r;
    r.step = static_cast<uint32_t>(i);
    r.kind = i % 3 ? RecordKind::step : RecordKind::skipped;
    r.scalars.assign(static_cast<size_t>(i % 3), 0.5f);
    j.append(r);
    if (i % 2) j.sync();
  }
  return file("seed.smz");
}

Bytes state_seed(StateKind kind) {
  StateHeader h;
  h.method_json = "{}";
  h.base_fingerprint = "0123456789abcdef";
  h.watermark = 3;
  std::vector<StateTensor> tensors(2);
  tensors[0] = {"a", DType::BF16T8, {2, 3}, false};
  tensors[1] = {"b", DType::F32, {4}, true};
  const float x[6] = {1, 2, 3, 4, 5, 6};
  const int8_t tail[6] = {1, 2, 3, 4, 5, 6};
  write_state("seed.state", kind, h, tensors, [&](StateSink& s) {
    s.write(0, x, tail, 6);
    s.write(1, x, nullptr, 4);
  });
  return file("seed.state");
}

void read_state(const Bytes& b, StateKind kind) {
  put("fuzzed.safetensors", b);
  const StateReader r = StateReader::open("fuzzed.safetensors", kind);
  for (size_t i = 0; i < r.tensors().size(); ++i) touch(r.values(i), r.values_entry(i).n_bytes);
  r.verify_all();
  kept = r.identity().size();
}

// A folder with a tensor of every format, and what a model asks of it.
const std::vector<TensorRequest> kRequests = {{"a.weight", 12, 64},
                                              {"b.weight", 20, 48},
                                              {"c.weight", 8, 64},
                                              {"d.weight", 6, 64},
                                              {"n.weight", 1, 16}};
Bytes base_seed() {
  std::vector<smezo_test::Stored> tensors;
  smezo_test::add_tensor(tensors, "a.weight", "nf4", 12, 64);
  smezo_test::add_tensor(tensors, "b.weight", "int8", 20, 48);
  smezo_test::add_tensor(tensors, "c.weight", "nf4-double", 8, 64);
  smezo_test::add_tensor(tensors, "d.weight", "BF16", 6, 64);
  smezo_test::add_tensor(tensors, "n.weight", "F16", 1, 16);
  make_folders("seed");
  smezo_test::write_unpadded("seed/model.safetensors", tensors, 0);
  return file("seed/model.safetensors");
}

void read_base(const Bytes& b) {
  make_folders("fuzzed");
  put("fuzzed/model.safetensors", b);
  const Base base("fuzzed", kRequests);
  for (uint32_t id = 0; id < kRequests.size(); ++id) {
    const BaseTensor& t = base.tensor(id);
    touch(base.file().data(*t.data), t.data->n_bytes);
    if (t.absmax) touch(base.file().data(*t.absmax), t.absmax->n_bytes);
  }
}

Bytes index_seed() {
  const int32_t a[4] = {0, 5, 6, 99};
  const int64_t b[2] = {1, 2};
  write_safetensors("seed.index", {{"a.weight", "I32", {4}}, {"b.weight", "I64", {2}}}, {},
                    [&](SafetensorsSink& s) {
                      s.write(0, a, 16);
                      s.write(1, b, 16);
                    });
  return file("seed.index");
}

Bytes kept_seed() {
  const int32_t elements[3] = {1, 5, 9};
  const float values[3] = {1, 2, 3};
  write_originals("seed.kept", "0123456789abcdef", "0123456789abcdef", {{"a.weight", "I32", 3}},
                  [&](OriginalsSink& s) {
                    s.write(0, elements, values);
                    return std::string("0123456789abcdef");
                  });
  return file("seed.kept");
}

}  // namespace

std::vector<Target> targets() {
  disk();
  write_atomically("seed.smz", "x");
  RunHeader header;
  header.masks.resize(2);
  header.n_selected = {3, 4};
  header.mathematics["rope"] = "x";
  std::vector<Target> out = {
      {"json",
       json_seeds(),
       [](const Bytes& b) {
         const std::string once = Json::parse(text_of(b), "fuzzed").dump();
         if (Json::parse(once, "dumped").dump() != once) std::abort();  // what we write, we read
       },
       {},
       400},
      {"config",
       {bytes_of(kConfig)},
       [](const Bytes& b) { kept = parameters_of(parse_config(text_of(b))).size(); },
       {},
       1 << 20},
      {"safetensors",
       {safetensors_seed()},
       [](const Bytes& b) {
         put("fuzzed.safetensors", b);
         read_all_tensors(Safetensors::open("fuzzed.safetensors"));
       },
       repair_safetensors,
       400},
      {"index of shards",
       {bytes_of(
           R"({"metadata":{"total_size":27},"weight_map":{"a.weight":"s.safetensors","b":"s.safetensors","c":"s.safetensors"}})")},
       [](const Bytes& b) {
         make_folders("shards");
         if (!file_exists("shards/s.safetensors")) put("shards/s.safetensors", safetensors_seed());
         put("shards/model.safetensors.index.json", b);
         read_all_tensors(Safetensors::open("shards"));
       },
       {},
       400},
      {"journal",
       {journal_seed(0), journal_seed(1), journal_seed(5)},
       [](const Bytes& b) {
         put("fuzzed.smz", b);
         const JournalState before = read_journal("fuzzed.smz");
         Journal::open("fuzzed.smz").append({});
         if (read_journal("fuzzed.smz").n_records != before.n_records + 1) std::abort();
       },
       repair_journal,
       64},
      {"delta",
       {state_seed(StateKind::delta)},
       [](const Bytes& b) { read_state(b, StateKind::delta); },
       repair_safetensors,
       400},
      {"generation",
       {state_seed(StateKind::generation)},
       [](const Bytes& b) { read_state(b, StateKind::generation); },
       repair_safetensors,
       400},
      {"run header",
       {bytes_of(to_json(header))},
       [](const Bytes& b) { kept = run_header_from_json(text_of(b)).masks.size(); },
       {},
       400},
      {"base", {base_seed()}, read_base, repair_safetensors, 400},
      {"index file",
       {index_seed()},
       [](const Bytes& b) {
         put("fuzzed.safetensors", b);
         const Safetensors f = Safetensors::open("fuzzed.safetensors");
         for (const TensorEntry& t : f.tensors()) {
           check_element_list(t);
           kept = static_cast<uint64_t>(make_overlay(listed_elements(f, t), 10, 10).n());
         }
       },
       repair_safetensors,
       400},
      {"kept originals",
       {kept_seed()},
       [](const Bytes& b) {
         put("fuzzed.safetensors", b);
         kept = Originals("fuzzed.safetensors").prove();
       },
       repair_safetensors,
       400},
  };
  return out;
}

}  // namespace smezo_fuzz
