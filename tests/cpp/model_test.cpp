// config.json, the order of parameters, what a batch may be, and I12 of the forward. Logits are compared with
// transformers in tests/test_model.py.
#include "model/model.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <random>

#include "base/error.h"
#include "crash_simulator.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "model/catch_up.h"
#include "model/micro_batch.h"
#include "test.h"

using namespace smezo;
using smezo_test::CrashSimulator;

namespace {

const char* const kTiny =
    R"({"model_type":"llama","hidden_size":32,"intermediate_size":48,"num_hidden_layers":12,"num_attention_heads":4,
        "num_key_value_heads":2,"vocab_size":1100,"rms_norm_eps":1e-5,"max_position_embeddings":64})";

// kTiny with keys set from a JSON object.
std::string with(const std::string& changes) {
  Json json = Json::parse(kTiny, "tiny");
  const Json changed = Json::parse(changes, "changes");
  for (const auto& [key, value] : changed.as_object("changes")) json.set(key, value);
  return json.dump();
}
void refuse(const std::string& changes, const char* part) {
  CHECK_THROWS(FormatError, part, parse_config(with(changes)));
}

struct Tiny {
  explicit Tiny(const std::string& changes = "{}", int n_threads = 1)
      : pool(n_threads), config(parse_config(with(changes))) {
    std::vector<TensorRequest> requests;
    std::vector<TensorSpec> specs;
    for (const ParameterSpec& p : parameters_of(config)) {
      requests.push_back({p.name, p.rows, p.cols, p.block_linear});
      TensorMethod m;
      m.trained = p.block_linear;
      methods.push_back(m);
      specs.push_back(
          {p.name, "F32", p.rows == 1 ? std::vector<int64_t>{p.cols} : std::vector<int64_t>{p.rows, p.cols}});
    }
    make_folders("m");
    std::mt19937 random(1);
    std::normal_distribution<float> normal(0, 0.2f);
    write_safetensors("m/model.safetensors", specs, {}, [&](SafetensorsSink& sink) {
      for (size_t i = 0; i < specs.size(); ++i) {
        std::vector<float> w(static_cast<size_t>(requests[i].rows * requests[i].cols));
        for (float& x : w) x = normal(random) + (requests[i].rows == 1 ? 1.0f : 0.0f);
        sink.write(i, w.data(), static_cast<int64_t>(w.size() * sizeof(float)));
      }
    });
    store = Store::open("m", requests, DType::F32, pool);
    model = std::make_unique<Model>(config, *store);
  }

  std::vector<std::vector<float>> run(const Batch& batch, const std::vector<Branch>& branches,
                                      bool want_logits = false, Isa isa = Isa::scalar) {
    VisitContext context;
    context.kernels = &kernels_for(isa);
    context.pool = &pool;
    context.compute = Compute::f32;
    context.run_seed = 11;
    context.step = 3;
    context.branches = branches;
    context.methods = &methods;
    FactorSource factors(context.run_seed, *context.kernels, pool, false);
    context.factors = &factors;
    context.catch_up = [&](uint32_t id) {
      const TensorRequest& r = store->request(id);
      return CatchUp({&methods[id], id, r.rows, r.cols, context.run_seed}, caught_up[id] ? none : records,
                     *context.kernels, pool, factors);
    };
    context.caught_up = [&](uint32_t id) { caught_up[id] = true; };
    return model->forward(batch, context, want_logits).values;
  }

  ThreadPool pool;
  ModelConfig config;
  std::vector<TensorMethod> methods;
  std::unique_ptr<Store> store;
  std::unique_ptr<Model> model;
  std::vector<PendingRecord> records, none;
  std::map<uint32_t, bool> caught_up;
};

std::vector<int32_t> text(int64_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> out;
  for (int64_t i = 0; i < n; ++i) out.push_back(static_cast<int32_t>(random() % 1100));
  return out;
}

// Every position of every text predicts a token.
Batch language_model(const std::vector<std::vector<int32_t>>& texts) {
  Batch b;
  for (const auto& t : texts) {
    const int64_t start = static_cast<int64_t>(b.tokens.size());
    b.segments.push_back({start, static_cast<int64_t>(t.size()), -1});
    for (size_t i = 0; i < t.size(); ++i)
      b.labels.push_back({start + static_cast<int64_t>(i), t[(i + 1) % t.size()], b.n_examples, 0});
    b.tokens.insert(b.tokens.end(), t.begin(), t.end());
    ++b.n_examples;
  }
  return b;
}

// Supported by the machine and in this build.
bool runs(Isa isa) {
  try {
    kernels_for(isa);
    return true;
  } catch (const ArgumentError&) {
    return false;
  }
}

const std::vector<Branch> kPair = {{0, 1, 0.01f}, {0, -1, 0.01f}};

}  // namespace

TEST(config_reads_what_changes_the_mathematics) {
  const ModelConfig plain = parse_config(kTiny);
  CHECK(plain.head_dim == 8 && plain.n_kv_heads == 2 && !plain.tied && plain.rope.theta == 10000 &&
        plain.sliding_window == 0);
  CHECK(parse_config(with(R"({"head_dim":16,"rope_theta":5e5,"tie_word_embeddings":true})")).head_dim == 16);
  // Both spellings of the same thing.
  const auto old = parse_config(with(R"({"rope_theta":7,"rope_scaling":{"type":"linear","factor":2}})"));
  const auto now =
      parse_config(with(R"({"rope_parameters":{"rope_type":"linear","factor":2.0,"rope_theta":7.0}})"));
  for (const ModelConfig& c : {old, now})
    CHECK(c.rope.kind == RopeKind::linear && c.rope.factor == 2 && c.rope.theta == 7 && c.max_length() == 64);
  CHECK(parse_config(with(R"({"rope_scaling":{"type":"dynamic","factor":4}})")).max_length() == 256);
  CHECK(parse_config(with(R"({"model_type":"mistral"})")).sliding_window == 4096);
  CHECK(parse_config(with(R"({"model_type":"mistral","sliding_window":null})")).sliding_window == 0);
  CHECK(parse_config(
            with(R"({"torch_dtype":"bfloat16","architectures":["LlamaForCausalLM"],"rope_scaling":null})"))
            .n_layers == 12);
}

TEST(config_refuses_what_it_does_not_understand) {
  refuse(R"({"model_type":"gpt2"})", "known: llama, mistral");
  refuse(R"({"logit_scale":2})", "unknown key 'logit_scale' may change the mathematics");
  refuse(R"({"hidden_act":"gelu"})", "\"gelu\", expected \"silu\"");
  refuse(R"({"pretraining_tp":2})", "pretraining_tp");
  refuse(R"({"quantization_config":{}})", "quantization_config");
  refuse(R"({"hidden_size":null})", "'hidden_size' is missing");
  refuse(R"({"hidden_size":0})", "'hidden_size' is 0");
  refuse(R"({"num_hidden_layers":"2"})", "num_hidden_layers");
  refuse(R"({"num_key_value_heads":3})", "not a multiple of 3 key-value heads");
  refuse(R"({"head_dim":7})", "head size 7");
  refuse(R"({"partial_rotary_factor":0.5})", "partial_rotary_factor");
  refuse(R"({"sliding_window":8})", "sliding_window");
  refuse(R"({"rope_interleaved":true})", "rope_interleaved");
  refuse(R"({"model_type":"mistral","attention_bias":true})", "attention_bias");
  refuse(R"({"rope_scaling":{"type":"longrope","factor":2}})", "rope type 'longrope' is not supported");
  refuse(R"({"rope_scaling":{"type":"linear"}})", "'factor' is missing");
  refuse(R"({"rope_scaling":{"type":"linear","factor":2,"mrope_section":[1]}})",
         "unknown key 'mrope_section'");
  refuse(R"({"rope_scaling":{"rope_type":"llama3","factor":8}})", "'low_freq_factor' is missing");
}

TEST(parameters_are_in_byte_order_of_their_names) {
  const auto p = parameters_of(parse_config(kTiny));
  CHECK(p.size() == 3 + 12 * 9);
  CHECK(p[0].name == "lm_head.weight" && p[0].rows == 1100 && !p[0].block_linear);
  CHECK(p[1].name == "model.embed_tokens.weight");
  CHECK(p[2].name == "model.layers.0.input_layernorm.weight" && p[2].rows == 1 && p[2].cols == 32);
  CHECK(p[3].name == "model.layers.0.mlp.down_proj.weight" && p[3].rows == 32 && p[3].cols == 48 &&
        p[3].block_linear);
  CHECK(p[2 + 9].name == "model.layers.1.input_layernorm.weight");
  CHECK(p[2 + 18].name == "model.layers.10.input_layernorm.weight");
  CHECK(p[2 + 36].name == "model.layers.2.input_layernorm.weight");
  CHECK(p.back().name == "model.norm.weight");
}

// I7: a tied head has no id of its own.
TEST(I7_tied_head_is_the_embedding) {
  const auto p = parameters_of(parse_config(with(R"({"tie_word_embeddings":true,"attention_bias":true})")));
  CHECK(p.size() == 2 + 12 * 13);
  CHECK(p[0].name == "model.embed_tokens.weight");
  CHECK(p[1 + 5].name == "model.layers.0.self_attn.k_proj.bias" && p[1 + 5].cols == 16 &&
        !p[1 + 5].block_linear);
}

TEST(batch_errors_name_the_place) {
  CrashSimulator disk(1);
  Tiny tiny;
  const auto expect = [&](const Batch& b, const char* part) {
    CHECK_THROWS(ArgumentError, part, tiny.run(b, kPair));
  };
  Batch b = language_model({text(5, 1)});
  b.tokens[3] = 1100;
  expect(b, "token id 1100 at position 3, expected 0..1099");
  expect(language_model({text(65, 1)}), "65 tokens long, expected at most 64");
  expect(language_model({}), "no tokens");
  b = language_model({text(5, 1)});
  b.labels.clear();
  expect(b, "no label");
  b = language_model({text(5, 1)});
  b.labels[2].position = 5;
  expect(b, "label 2 is at position 5");
  b = language_model({text(5, 1)});
  b.labels[1].target = -100;
  expect(b, "token id -100 as target of label 1");
  b = language_model({text(5, 1), text(4, 2)});
  b.segments[1].parent = 1;
  expect(b, "segment 1 has parent 1");
  b.segments[1] = {6, 3, -1};
  expect(b, "segment 1 starts at 6");
  CHECK_THROWS(ArgumentError, "no branch", tiny.run(language_model({text(5, 1)}), {}));
}

// I12: neighbours, threads and other branches change no bit; on every instruction set.
TEST(I12_a_text_does_not_feel_its_neighbours) {
  CrashSimulator disk(1);
  for (const Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512, Isa::amx, Isa::neon}) {
    if (!runs(isa)) continue;
    Tiny tiny, threaded("{}", 3);
    const Batch alone = language_model({text(23, 2)});
    const Batch among = language_model({text(17, 1), text(23, 2), text(1, 3)});
    const auto want = tiny.run(alone, kPair, false, isa);
    const auto with_others = threaded.run(
        among, {{0, 1, 0.01f}, {0, -1, 0.01f}, {0, 1, 0.0f}, {1, 1, 0.01f}, {1, -1, 0.01f}}, false, isa);
    for (size_t b = 0; b < 2; ++b) {
      CHECK(std::memcmp(want[b].data(), with_others[b].data() + 17, 23 * sizeof(float)) == 0);
      CHECK(want[b] != want[1 - b]);
    }
    const auto one_token = tiny.run(language_model({text(1, 3)}), {{0, 1, 0.0f}}, false, isa);
    CHECK(one_token[0][0] == with_others[2][40]);

    // In a crowd that no cache block of tokens holds.
    std::vector<std::vector<int32_t>> crowd;
    for (unsigned i = 0; i < 9; ++i) crowd.push_back(text(37, 10 + i));
    crowd.insert(crowd.begin() + 8, text(23, 2));
    const auto in_crowd = threaded.run(language_model(crowd), kPair, false, isa);
    for (size_t b = 0; b < 2; ++b)
      CHECK(std::memcmp(want[b].data(), in_crowd[b].data() + 8 * 37, 23 * sizeof(float)) == 0);
  }
}

// One of gate and up is trained, the other not: as if its mask left everything out.
TEST(gated_unit_trains_half) {
  CrashSimulator disk(1);
  const Batch batch = language_model({text(20, 4)});
  Tiny whole;
  const auto both = whole.run(batch, kPair);
  for (const char* kind : {"gate_proj", "up_proj"}) {
    Tiny frozen, masked;
    const auto parameters = parameters_of(frozen.config);
    for (size_t i = 0; i < parameters.size(); ++i) {
      if (parameters[i].name.find(kind) == std::string::npos) continue;
      frozen.methods[i].trained = false;
      masked.methods[i].mask = {MaskKind::small, -1.0f};
    }
    const auto values = frozen.run(batch, kPair);
    CHECK(values == masked.run(batch, kPair));
    CHECK(values != both);
  }
}

TEST(candidates_are_the_same_logits) {
  CrashSimulator disk(1);
  Tiny tiny;
  Batch b = language_model({text(9, 1), text(20, 2)});
  const auto all = tiny.run(b, kPair, true);
  b.task = Task::choice_candidates;
  b.candidates = {1099, 3, 512};
  b.labels = {{8, -1, 0, 0}, {28, -1, 1, 0}};
  b.n_options = 3;
  b.answers = {0, 2};
  const auto some = tiny.run(b, kPair);
  for (size_t branch = 0; branch < 2; ++branch) {
    CHECK(some[branch].size() == 6);
    for (size_t c = 0; c < 3; ++c) {
      const size_t token = static_cast<size_t>(b.candidates[c]);
      CHECK(some[branch][c] == all[branch][8 * 1100 + token]);
      CHECK(some[branch][3 + c] == all[branch][28 * 1100 + token]);
    }
  }
}

// Records reach every trained tensor once, whichever path first touches it, and no other.
TEST(I3_pending_records_reach_each_tensor_once) {
  CrashSimulator disk(1);
  Tiny tiny("{\"tie_word_embeddings\":true}", 2);
  tiny.records = {{1, 0, 0.0f, {0.25f}, {}, {}, {}}};
  tiny.run(language_model({text(9, 1)}), kPair);
  for (uint32_t id = 0; id < tiny.methods.size(); ++id) CHECK(tiny.caught_up[id] == tiny.methods[id].trained);
  const auto before = tiny.run(language_model({text(9, 1)}), kPair);
  CHECK(before == tiny.run(language_model({text(9, 1)}), kPair));
}

TEST_MAIN()

TEST(I12_micro_batches_give_the_bits_of_the_batch) {
  CrashSimulator disk(1);
  Tiny tiny;
  Batch b = language_model({text(5, 1), text(21, 2), text(2, 3), text(17, 4), text(1, 5)});
  b.segments[2].parent = 1;  // an option behind a prompt that has labels of its own
  b.segments[4].parent = 3;
  std::shuffle(b.labels.begin(), b.labels.end(), std::mt19937(1));
  // A text that nothing is asked of.
  b.segments.push_back({static_cast<int64_t>(b.tokens.size()), 3, -1});
  for (const int32_t t : text(3, 6)) b.tokens.push_back(t);
  for (const bool want_logits : {false, true}) {
    const auto whole = tiny.run(b, kPair, want_logits);
    for (const int64_t n : {1, 2, 3, 4, 9}) {
      const std::vector<MicroBatch> parts = cut(b, n);
      CHECK(parts.size() == static_cast<size_t>(std::min<int64_t>(n, 3)));
      ForwardResult merged;
      size_t n_tokens = 0;
      for (const MicroBatch& p : parts) {
        n_tokens += p.batch.tokens.size();
        put_into(merged, b.labels.size(), p, {tiny.run(p.batch, kPair, want_logits), {}});
      }
      CHECK(n_tokens == b.tokens.size() - 3);
      CHECK(merged.values == whole);
    }
  }
}

TEST(micro_batches_are_the_fewest_that_fit) {
  const Batch b = language_model({text(10, 1), text(10, 2), text(40, 3), text(10, 4)});
  const auto n_bytes = [](const Batch& part) { return 100 * static_cast<int64_t>(part.tokens.size()); };
  CHECK(micro_batches_for(b, 7000, n_bytes, 50).parts.empty());
  CHECK(micro_batches_for(b, 6999, n_bytes, 50).n() == 2);  // 20 and 50 tokens
  CHECK(micro_batches_for(b, 5050, n_bytes, 50).forward_bytes == 5050);
  CHECK(micro_batches_for(b, 5049, n_bytes, 50).n() == 3);
  CHECK(micro_batches_for(b, 4050, n_bytes, 50).forward_bytes == 4050);
  CHECK(micro_batches_for(b, 0, n_bytes, 50).forward_bytes == 4050);
  CHECK(micro_batches_for(b, 0, n_bytes, 9000).parts.empty());  // all alone would take more
}
