// Reading config.json: the lists of keys, and the checks.
#include "model/config.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <string_view>

#include "base/error.h"
#include "io/file.h"
#include "io/json.h"
#include "model/family.h"

namespace smezo {
namespace {

constexpr int64_t kMostLayers = 4096;  // far above any model: names of tensors are made for each

// Keys that do not change the logits of a given text: bookkeeping, sampling, training, other runtimes.
constexpr std::string_view kHarmless[] = {"_attn_implementation",
                                          "_attn_implementation_autoset",
                                          "_commit_hash",
                                          "_name_or_path",
                                          "add_cross_attention",
                                          "architectures",
                                          "attention_dropout",
                                          "auto_map",
                                          "bad_words_ids",
                                          "begin_suppress_tokens",
                                          "bos_token_id",
                                          "chunk_size_feed_forward",
                                          "classifier_dropout",
                                          "cross_attention_hidden_size",
                                          "decoder_start_token_id",
                                          "diversity_penalty",
                                          "do_sample",
                                          "dtype",
                                          "early_stopping",
                                          "encoder_no_repeat_ngram_size",
                                          "eos_token_id",
                                          "exponential_decay_length_penalty",
                                          "finetuning_task",
                                          "forced_bos_token_id",
                                          "forced_eos_token_id",
                                          "id2label",
                                          "initializer_range",
                                          "is_decoder",
                                          "is_encoder_decoder",
                                          "is_llama_config",
                                          "keys_to_ignore_at_inference",
                                          "label2id",
                                          "length_penalty",
                                          "max_length",
                                          "max_sequence_length",
                                          "min_length",
                                          "model_type",
                                          "no_repeat_ngram_size",
                                          "num_beam_groups",
                                          "num_beams",
                                          "num_return_sequences",
                                          "output_attentions",
                                          "output_hidden_states",
                                          "output_scores",
                                          "pad_token_id",
                                          "prefix",
                                          "problem_type",
                                          "pruned_heads",
                                          "remove_invalid_values",
                                          "repetition_penalty",
                                          "return_dict",
                                          "return_dict_in_generate",
                                          "sep_token_id",
                                          "suppress_tokens",
                                          "task_specific_params",
                                          "temperature",
                                          "tf_legacy_loss",
                                          "tie_encoder_decoder",
                                          "tokenizer_class",
                                          "top_k",
                                          "top_p",
                                          "torch_dtype",
                                          "torchscript",
                                          "transformers.js_config",
                                          "transformers_version",
                                          "typical_p",
                                          "unsloth_fixed",
                                          "unsloth_version",
                                          "use_bfloat16",
                                          "use_cache"};

// Keys this file reads; the second list only inside rope_scaling and rope_parameters.
constexpr std::string_view kUnderstood[] = {"attention_bias",
                                            "head_dim",
                                            "hidden_act",
                                            "hidden_size",
                                            "intermediate_size",
                                            "max_position_embeddings",
                                            "mlp_bias",
                                            "num_attention_heads",
                                            "num_hidden_layers",
                                            "num_key_value_heads",
                                            "original_max_position_embeddings",
                                            "partial_rotary_factor",
                                            "pretraining_tp",
                                            "quantization_config",
                                            "rms_norm_eps",
                                            "rope_interleaved",
                                            "rope_parameters",
                                            "rope_scaling",
                                            "rope_theta",
                                            "sliding_window",
                                            "tie_word_embeddings",
                                            "vocab_size"};
constexpr std::string_view kUnderstoodRope[] = {"attention_factor",
                                                "beta_fast",
                                                "beta_slow",
                                                "factor",
                                                "finetuned",
                                                "high_freq_factor",
                                                "low_freq_factor",
                                                "mscale",
                                                "mscale_all_dim",
                                                "original_max_position_embeddings",
                                                "partial_rotary_factor",
                                                "rope_theta",
                                                "rope_type",
                                                "truncate",
                                                "type"};

template <size_t n>
bool contains(const std::string_view (&list)[n], std::string_view key) {
  return std::find(std::begin(list), std::end(list), key) != std::end(list);
}

[[noreturn]] void refuse(const std::string& what) { fail<FormatError>("config", what); }

// A key that is absent or null has its default.
class Keys {
 public:
  explicit Keys(const Json& json) : json_(json) {}

  const Json* get(const char* key) const {
    const Json* v = json_.find(key);
    return v == nullptr || v->is_null() ? nullptr : v;
  }
  bool is_null(const char* key) const { return json_.find(key) != nullptr && get(key) == nullptr; }
  bool flag(const char* key, bool absent) const { return get(key) ? get(key)->as_bool(name(key)) : absent; }
  double number(const char* key, double absent) const {
    return get(key) ? get(key)->as_double(name(key)) : absent;
  }
  double positive(const char* key, double absent) const {
    const double v = number(key, absent);
    if (!(v > 0) || !std::isfinite(v)) {
      refuse(get(key) ? "'" + std::string(key) + "' is " + get(key)->dump() + ", expected a number above zero"
                      : "'" + std::string(key) + "' is missing, expected a number above zero");
    }
    return v;
  }
  // absent = 0: the key is required.
  int64_t size(const char* key, int64_t absent) const {
    const int64_t v = get(key) ? get(key)->as_int(name(key)) : absent;
    if (v < 1 || v > std::numeric_limits<int32_t>::max()) {
      refuse(get(key)
                 ? "'" + std::string(key) + "' is " + get(key)->dump() + ", expected 1.." +
                       std::to_string(std::numeric_limits<int32_t>::max())
                 : "'" + std::string(key) + "' is missing; this is not a config.json of a supported model");
    }
    return v;
  }

 private:
  static std::string name(const char* key) { return std::string("'") + key + "' of config.json"; }
  const Json& json_;
};

RopeKind rope_kind(const std::string& name) {
  if (name == "default") return RopeKind::standard;
  if (name == "linear") return RopeKind::linear;
  if (name == "dynamic") return RopeKind::dynamic;
  if (name == "llama3") return RopeKind::llama3;
  if (name == "yarn") return RopeKind::yarn;
  refuse("rope type '" + name + "' is not supported; known: default, linear, dynamic, llama3, yarn");
}

void check_whole_rotation(const Keys& keys) {
  if (keys.number("partial_rotary_factor", 1) != 1)
    refuse("'partial_rotary_factor' is not 1, but this family rotates whole heads");
}

// transformers multiplies cos and sin by this (YaRN, section 3.4; mscale as DeepSeek writes it).
double yarn_attention_factor(const Keys& r, double factor) {
  if (r.get("attention_factor")) return r.positive("attention_factor", 0);
  const auto scale = [&](double mscale) { return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0; };
  const double mscale = r.number("mscale", 0), all = r.number("mscale_all_dim", 0);
  return mscale != 0 && all != 0 ? scale(mscale) / scale(all) : scale(1);
}

// transformers 5 writes `rope_parameters`, older versions `rope_scaling` and a separate `rope_theta`;
// rope_scaling wins where both are.
RopeConfig parse_rope(const Keys& top, double max_position) {
  const Json empty = Json::object();
  const Json* json = top.get("rope_scaling") ? top.get("rope_scaling") : top.get("rope_parameters");
  if (json == nullptr) json = &empty;
  for (const auto& [key, value] : json->as_object("'rope_scaling' or 'rope_parameters' of config.json")) {
    if (!contains(kUnderstoodRope, key))
      refuse("unknown key '" + key +
             "' in the rope parameters may change the mathematics; expected those of the kinds default, "
             "linear, dynamic, llama3, yarn");
  }
  const Keys r(*json);
  RopeConfig out;
  const Json* kind = r.get("rope_type") ? r.get("rope_type") : r.get("type");
  if (kind != nullptr) out.kind = rope_kind(kind->as_string("'rope_type' of config.json"));
  out.theta = r.positive("rope_theta", top.positive("rope_theta", 10000));
  check_whole_rotation(r);
  if (out.kind == RopeKind::standard) return out;

  out.original_max_position = top.get("original_max_position_embeddings")
                                  ? top.positive("original_max_position_embeddings", 0)
                                  : r.positive("original_max_position_embeddings", max_position);
  const bool from_lengths = out.kind == RopeKind::yarn && r.is_null("factor");
  out.factor = r.positive("factor", from_lengths ? max_position / out.original_max_position : 0);
  if (out.kind == RopeKind::llama3) {
    out.low_freq_factor = r.positive("low_freq_factor", 0);
    out.high_freq_factor = r.positive("high_freq_factor", 0);
    if (out.high_freq_factor == out.low_freq_factor)
      refuse("'high_freq_factor' equals 'low_freq_factor', expected more");
  }
  if (out.kind == RopeKind::yarn) {
    out.attention_factor = yarn_attention_factor(r, out.factor);
    if (r.number("beta_fast", 0) != 0) out.beta_fast = r.positive("beta_fast", 0);
    if (r.number("beta_slow", 0) != 0) out.beta_slow = r.positive("beta_slow", 0);
    out.truncate = r.flag("truncate", true);
  }
  return out;
}

void check_keys(const Json& json) {
  for (const auto& [key, value] : json.as_object("config.json")) {
    if (!contains(kHarmless, key) && !contains(kUnderstood, key))
      refuse("unknown key '" + key +
             "' may change the mathematics; expected a key of a llama or mistral config.json, or one known "
             "to be harmless");
  }
}

void check_fixed(const Keys& keys, const Family& family) {
  if (const Json* q = keys.get("quantization_config")) {
    const Json* method = q->find("quant_method");
    const bool known = method && method->is_string() && method->as_string("") == "bitsandbytes";
    if (!known)
      refuse(
          "'quantization_config' is not bitsandbytes', expected a base in F32, F16, BF16, or NF4 or int8 as "
          "it writes them");
  }
  if (keys.get("hidden_act") && keys.get("hidden_act")->as_string("'hidden_act' of config.json") != "silu")
    refuse("'hidden_act' is " + keys.get("hidden_act")->dump() + ", expected \"silu\"");
  if (keys.number("pretraining_tp", 1) != 1)
    refuse("'pretraining_tp' is not 1, expected 1: sliced products round differently");
  if (keys.flag("rope_interleaved", false))
    refuse("'rope_interleaved' is true, expected false (the half layout)");
  check_whole_rotation(keys);
  const std::string type = family.model_type;
  if (!family.attention_bias && keys.flag("attention_bias", false))
    refuse("'attention_bias' is true, but " + type + " has none");
  if (!family.mlp_bias && keys.flag("mlp_bias", false))
    refuse("'mlp_bias' is true, but " + type + " has none");
  if (!family.sliding_window && keys.get("sliding_window"))
    refuse("'sliding_window' is set, but " + type + " has none");
}

void check_shape(const ModelConfig& c) {
  if (c.n_heads % c.n_kv_heads != 0) {
    refuse(std::to_string(c.n_heads) + " attention heads are not a multiple of " +
           std::to_string(c.n_kv_heads) + " key-value heads");
  }
  if (c.head_dim % 2 != 0 || (c.rope.kind == RopeKind::dynamic && c.head_dim < 4))
    refuse("head size " + std::to_string(c.head_dim) + " cannot be rotated, expected an even number");
}

}  // namespace

int64_t ModelConfig::max_length() const {
  if (rope.kind != RopeKind::dynamic || rope.factor <= 1) return max_position;
  return static_cast<int64_t>(static_cast<double>(max_position) * rope.factor);
}

ModelConfig parse_config(const std::string& text) {
  const Json json = Json::parse(text, "config.json");
  const Family& family =
      family_of(json.at("model_type", "config.json").as_string("'model_type' of config.json"));
  check_keys(json);
  const Keys keys(json);
  check_fixed(keys, family);

  ModelConfig c;
  c.model_type = family.model_type;
  c.hidden_size = keys.size("hidden_size", 0);
  c.intermediate_size = keys.size("intermediate_size", 0);
  c.n_layers = keys.size("num_hidden_layers", 0);
  if (c.n_layers > kMostLayers)
    refuse("num_hidden_layers " + std::to_string(c.n_layers) + ", expected at most " +
           std::to_string(kMostLayers));
  c.n_heads = keys.size("num_attention_heads", 0);
  c.n_kv_heads =
      keys.size("num_key_value_heads", family.default_kv_heads > 0 ? family.default_kv_heads : c.n_heads);
  if (!keys.get("head_dim") && c.hidden_size % c.n_heads != 0) {
    refuse("hidden_size " + std::to_string(c.hidden_size) + " is not a multiple of " +
           std::to_string(c.n_heads) + " heads, and 'head_dim' is missing");
  }
  c.head_dim = keys.size("head_dim", c.hidden_size / c.n_heads);
  c.vocab_size = keys.size("vocab_size", 0);
  c.max_position = keys.size("max_position_embeddings", family.default_max_position);
  c.rms_norm_eps = keys.positive("rms_norm_eps", 1e-6);
  c.attention_bias = keys.flag("attention_bias", false);
  c.mlp_bias = keys.flag("mlp_bias", false);
  c.tied = keys.flag("tie_word_embeddings", false);
  if (family.sliding_window && !keys.is_null("sliding_window"))
    c.sliding_window = keys.size("sliding_window", family.default_sliding_window);
  c.rope = parse_rope(keys, static_cast<double>(c.max_position));
  check_shape(c);
  return c;
}

std::map<std::string, std::string> mathematics(const ModelConfig& c) {
  constexpr const char* kRopeKinds[] = {"default", "linear", "dynamic", "llama3", "yarn"};
  const auto digits = [](double x) { return Json(x).dump(); };
  const RopeConfig& r = c.rope;
  std::map<std::string, std::string> out = {
      {"model_type", c.model_type},
      {"num_attention_heads", std::to_string(c.n_heads)},
      {"num_key_value_heads", std::to_string(c.n_kv_heads)},
      {"sliding_window", std::to_string(c.sliding_window)},
      {"rms_norm_eps", digits(c.rms_norm_eps)},
      {"tie_word_embeddings", c.tied ? "true" : "false"},
      {"rope_type", kRopeKinds[static_cast<int>(r.kind)]},
      {"rope_theta", digits(r.theta)},
      {"rope_scaling", digits(r.factor) + " " + digits(r.original_max_position) + " " +
                           digits(r.low_freq_factor) + " " + digits(r.high_freq_factor) + " " +
                           digits(r.beta_fast) + " " + digits(r.beta_slow) + " " +
                           digits(r.attention_factor) + (r.truncate ? " truncate" : "")}};
  // Elsewhere it is only the longest text.
  if (r.kind == RopeKind::dynamic) out["max_position_embeddings"] = std::to_string(c.max_position);
  return out;
}

ModelConfig load_config(const std::string& folder) {
  const std::string path = join(folder, "config.json");
  return named(path, [&] { return parse_config(read_all(path)); });
}

}  // namespace smezo
