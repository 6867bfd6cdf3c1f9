// Every way in which a quantized checkpoint can be wrong is found when it is opened, by both stores, and
// named.
#include <functional>
#include <limits>

#include "base/error.h"
#include "checkpoint.h"
#include "crash_simulator.h"
#include "format/codec.h"
#include "store/content_hash.h"
#include "store/index_file.h"
#include "store/originals.h"
#include "store/store.h"
#include "test.h"

using namespace smezo;
using smezo_test::CrashSimulator;
using smezo_test::Stored;

namespace {

const std::string kNf4 = "layers.0.a.weight", kDouble = "layers.0.b.weight", kInt8 = "layers.0.c.weight";
const std::string kState = ".quant_state.bitsandbytes__nf4";
using Tensors = std::vector<Stored>;

// 200 * 96 elements: 300 blocks, two nested ones.
Tensors good() {
  Tensors out;
  smezo_test::add_tensor(out, kNf4, "nf4", 200, 96);
  smezo_test::add_tensor(out, kDouble, "nf4-double", 200, 96);
  smezo_test::add_tensor(out, kInt8, "int8", 200, 96);
  return out;
}

Stored& of(Tensors& tensors, const std::string& name) {
  for (Stored& t : tensors) {
    if (t.spec.name == name) return t;
  }
  fail<ArgumentError>("test", "no tensor " + name);
}

void remove(Tensors& tensors, const std::string& name) {
  std::erase_if(tensors, [&](const Stored& t) { return t.spec.name == name; });
}

// Other bytes, of another number and dtype as the case may be.
void put(Stored& t, const std::string& dtype, std::vector<int64_t> shape, size_t n_bytes) {
  t.spec.dtype = dtype;
  t.spec.shape = std::move(shape);
  t.bytes.resize(n_bytes, 1);
}

void set_text(Tensors& tensors, const std::string& name, const std::string& text) {
  Stored& t = of(tensors, name + kState);
  t.bytes.assign(text.begin(), text.end());
  t.spec.shape = {static_cast<int64_t>(text.size())};
}

void edit_text(Tensors& tensors, const std::string& name, const std::string& from, const std::string& to) {
  const Stored& t = of(tensors, name + kState);
  std::string text(t.bytes.begin(), t.bytes.end());
  const size_t at = text.find(from);
  CHECK(at != std::string::npos);
  set_text(tensors, name, text.replace(at, from.size(), to));
}

std::string open_both(const Tensors& tensors, int64_t rows = 200) {
  smezo_test::write_unpadded("m/model.safetensors", tensors, 0);
  const std::vector<TensorRequest> all = {{kNf4, rows, 96}, {kDouble, 200, 96}, {kInt8, 200, 96}};
  ThreadPool pool(2);
  StreamOptions options;
  options.budget_bytes = int64_t{1} << 24;
  const auto a = Store::open("m", all, DType::F32, pool);
  const auto b = Store::open_streamed("m", all, DType::F32, options, pool);
  CHECK(a->fingerprint() == b->fingerprint());
  return a->fingerprint();
}

struct Disk {
  Disk() : disk(1) { make_folders("m"); }
  CrashSimulator disk;
};

// One change to a good checkpoint is refused with this message.
void refused(const char* message, const std::function<void(Tensors&)>& change) {
  Tensors tensors = good();
  change(tensors);
  CHECK_THROWS(FormatError, message, open_both(tensors));
}

}  // namespace

TEST(a_good_one_opens) {
  const Disk disk;
  CHECK(open_both(good()).size() == 16);
}

TEST(quant_map_altered) {
  const Disk disk;
  refused("another quant_map than NF4's", [](Tensors& t) { of(t, kNf4 + ".quant_map").bytes[4 * 5] ^= 1; });
}
TEST(quant_map_of_another_length) {
  const Disk disk;
  refused("another quant_map than NF4's",
          [](Tensors& t) { put(of(t, kNf4 + ".quant_map"), "F32", {15}, 60); });
}
TEST(quant_map_of_another_dtype) {
  const Disk disk;
  refused("has dtype BF16, expected F32",
          [](Tensors& t) { put(of(t, kNf4 + ".quant_map"), "BF16", {16}, 32); });
}
TEST(quant_map_missing) {
  const Disk disk;
  refused("no tensor 'layers.0.a.weight.quant_map'", [](Tensors& t) { remove(t, kNf4 + ".quant_map"); });
}
TEST(blocksize_that_nobody_writes) {
  const Disk disk;
  for (const char* block : {"48", "16", "8192", "0", "-64"}) {
    refused((std::string("has blocksize ") + block).c_str(), [&](Tensors& t) {
      edit_text(t, kNf4, "\"blocksize\": 64", std::string("\"blocksize\": ") + block);
    });
  }
}
TEST(blocksize_is_no_number) {
  const Disk disk;
  refused("quant_state of layers.0.a.weight",
          [](Tensors& t) { edit_text(t, kNf4, "\"blocksize\": 64", "\"blocksize\": \"64\""); });
}
TEST(blocksize_missing) {
  const Disk disk;
  refused("blocksize", [](Tensors& t) { edit_text(t, kNf4, "\"blocksize\": 64,", ""); });
}
TEST(blocksize_of_another_number_of_scales) {
  const Disk disk;
  refused("'layers.0.a.weight.absmax' is F32 [300], expected F32 [150]",
          [](Tensors& t) { edit_text(t, kNf4, "\"blocksize\": 64", "\"blocksize\": 128"); });
}
TEST(fp4) {
  const Disk disk;
  refused("is FP4, expected NF4",
          [](Tensors& t) { of(t, kNf4 + kState).spec.name = kNf4 + ".quant_state.bitsandbytes__fp4"; });
}
TEST(absmax_of_another_length) {
  const Disk disk;
  refused("is F32 [299], expected F32 [300]",
          [](Tensors& t) { put(of(t, kNf4 + ".absmax"), "F32", {299}, 299 * 4); });
  refused("is U8 [301], expected U8 [300]",
          [](Tensors& t) { put(of(t, kDouble + ".absmax"), "U8", {301}, 301); });
}
TEST(absmax_of_another_dtype) {
  const Disk disk;
  refused("is F16 [300], expected F32 [300]",
          [](Tensors& t) { put(of(t, kNf4 + ".absmax"), "F16", {300}, 600); });
  refused("is U8 [300], expected F32 [300]",
          [](Tensors& t) { put(of(t, kNf4 + ".absmax"), "U8", {300}, 300); });
  refused("is F32 [300], expected U8 [300]",
          [](Tensors& t) { put(of(t, kDouble + ".absmax"), "F32", {300}, 1200); });
}
TEST(absmax_missing) {
  const Disk disk;
  refused("no tensor 'layers.0.b.weight.absmax'", [](Tensors& t) { remove(t, kDouble + ".absmax"); });
}
TEST(quantized_shape_of_another_model) {
  const Disk disk;
  refused("has quantized shape [96, 200], expected [200, 96]",
          [](Tensors& t) { edit_text(t, kNf4, "[200, 96]", "[96, 200]"); });
  refused("has quantized shape [19200]", [](Tensors& t) { edit_text(t, kNf4, "[200, 96]", "[19200]"); });
  CHECK_THROWS(FormatError, "has quantized shape [200, 96], expected [202, 96]", open_both(good(), 202));
}
TEST(packed_bytes_of_another_number) {
  const Disk disk;
  refused("has 9599 packed bytes, expected 9600",
          [](Tensors& t) { put(of(t, kNf4), "U8", {9599, 1}, 9599); });
}
TEST(nested_scales_of_other_sizes) {
  const Disk disk;
  const char* const message = "has nested scales of unexpected sizes";
  refused(message, [](Tensors& t) { put(of(t, kDouble + ".nested_absmax"), "F32", {1}, 4); });
  refused(message, [](Tensors& t) { put(of(t, kDouble + ".nested_quant_map"), "F32", {255}, 1020); });
  for (const char* block : {"0", "-256", "128", "4294967296", "4611686018427387904", "9223372036854775807"}) {
    refused(message, [&](Tensors& t) {
      edit_text(t, kDouble, "\"nested_blocksize\": 256", std::string("\"nested_blocksize\": ") + block);
      if (std::string(block).size() > 4) put(of(t, kDouble + ".nested_absmax"), "F32", {1}, 4);
    });
  }
}
TEST(nested_scales_of_another_dtype) {
  const Disk disk;
  refused("'layers.0.b.weight.nested_absmax' has dtype F16",
          [](Tensors& t) { put(of(t, kDouble + ".nested_absmax"), "F16", {2}, 4); });
}
TEST(nested_offset_missing_or_no_number) {
  const Disk disk;
  refused("nested_offset",
          [](Tensors& t) { edit_text(t, kDouble, "\"nested_offset\"", "\"nested_offse\""); });
  refused("quant_state of layers.0.b.weight", [](Tensors& t) {
    edit_text(t, kDouble, "\"nested_offset\": ", "\"nested_offset\": true, \"x\": ");
  });
}
TEST(nested_offset_that_fp32_does_not_hold) {
  const Disk disk;
  refused("nested_offset", [](Tensors& t) {
    edit_text(t, kDouble, "\"nested_offset\": ", "\"nested_offset\": 1e300, \"x\": ");
  });
}
TEST(scb_missing_or_of_another_size_or_dtype) {
  const Disk disk;
  const char* const message = "is I8 without its 200 row scales";
  refused(message, [](Tensors& t) { remove(t, "layers.0.c.SCB"); });
  refused(message, [](Tensors& t) { put(of(t, "layers.0.c.SCB"), "F32", {199}, 796); });
  refused("'layers.0.c.SCB' has dtype F16",
          [](Tensors& t) { put(of(t, "layers.0.c.SCB"), "F16", {200}, 400); });
}
TEST(int8_of_another_shape) {
  const Disk disk;
  refused("has shape [96, 200], expected [200, 96]", [](Tensors& t) { of(t, kInt8).spec.shape = {96, 200}; });
}
TEST(broken_json) {
  const Disk disk;
  for (const char* text :
       {"", "{", "{\"quant_type\": \"nf4\"", "[1, 2]", "null", "{\"shape\": 3}", "\xff\xfe{}"})
    refused("quant_state of layers.0.a.weight", [&](Tensors& t) { set_text(t, kNf4, text); });
}
TEST(state_missing) {
  const Disk disk;
  refused("'layers.0.a.weight' has shape [9600, 1], expected [200, 96]",
          [](Tensors& t) { remove(t, kNf4 + kState); });
}

// Whatever decides about a value is in the fingerprint.
TEST(fingerprint_covers_scales) {
  const Disk disk;
  const std::string first = open_both(good());
  const auto changes = [&](const std::function<void(Tensors&)>& change) {
    Tensors t = good();
    change(t);
    return open_both(t) != first;
  };
  for (const std::string& name : {kNf4 + ".absmax", kDouble + ".absmax", kDouble + ".nested_absmax",
                                  kDouble + ".nested_quant_map", std::string("layers.0.c.SCB")})
    CHECK(changes([&](Tensors& t) { of(t, name).bytes[0] ^= 1; }));
  CHECK(changes(
      [](Tensors& t) { edit_text(t, kDouble, "\"nested_offset\": ", "\"nested_offset\": 0.25, \"x\": "); }));
}

// Originals of kNf4's elements 5, 96 and 19199, as of weights with this fingerprint.
void keep(const std::string& fingerprint, const std::string& name = kNf4) {
  const int32_t elements[] = {5, 96, 19199};
  const float values[] = {0.25f, -3.0f, 7.0f};
  write_originals("m/kept.safetensors", "index", "source", {{name, "I32", 3}}, [&](OriginalsSink& sink) {
    sink.write(0, elements, values);
    return fingerprint;
  });
}

TEST(kept_originals_are_of_the_fingerprint_and_begin_overlays) {
  const Disk disk;
  const std::string plain = open_both(good());
  keep(plain);
  const std::string with = open_both(good());
  CHECK(with != plain);
  keep(with);
  CHECK_THROWS(FormatError, "belongs to weights of fingerprint", open_both(good()));
  keep(plain, kInt8);
  CHECK(open_both(good()) != with);
  for (const char* name : {"layers.0.d.weight", "layers.0.b.weigh"}) {
    keep(plain, name);
    CHECK_THROWS(FormatError, "which is not there", open_both(good()));
  }
  keep(plain);
  ThreadPool pool(2);
  const std::vector<TensorRequest> all = {{kNf4, 200, 96}, {kDouble, 200, 96}, {kInt8, 200, 96}};
  const auto store = Store::open("m", all, DType::F32, pool);
  std::vector<float> decoded(200 * 96);
  store->for_units(0, [&](const Unit& u, const WeightView& w) {
    for (int64_t i = u.row0 * 96; i < (u.row0 + u.n_rows) * 96; ++i)
      decoded[static_cast<size_t>(i)] = decode_at(w, i);
  });
  // Before, between, on and after what was kept, in rows of their own and in shared ones.
  store->set_overlay(0, make_overlay({0, 5, 6, 95, 96, 97, 300, 19198, 19199}, 200, 96));
  store->set_overlay(1, make_overlay({5, 96}, 200, 96));
  CHECK(store->n_originals() == 3);
  const auto set = store->overlay(0)->value;
  const std::vector<float> values(set.begin(), set.end());
  CHECK(values == (std::vector<float>{decoded[0], 0.25f, decoded[6], decoded[95], -3.0f, decoded[97],
                                      decoded[300], decoded[19198], 7.0f}));
}

TEST(a_hash_of_pieces_is_that_of_the_whole) {
  const Disk disk;
  make_folders("h");
  for (const size_t n : {size_t{0}, size_t{1}, size_t{65535}, size_t{65536}, size_t{65537}, size_t{200003}}) {
    std::string content(n, '\0');
    for (size_t i = 0; i < n; ++i) content[i] = static_cast<char>(i * 131 + i / 251);
    write_atomically("h/f", content);
    CHECK(hash_of_file("h/f") == hash_text(hash_bytes(content.data(), static_cast<int64_t>(n))));
  }
}

TEST_MAIN()
