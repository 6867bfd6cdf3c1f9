// What config.json says about the mathematics of a model. Every key that could change it is understood or
// refused.
#pragma once
#include <cstdint>
#include <map>
#include <string>

namespace smezo {

// Rope kinds as transformers' modeling_rope_utils defines them. longrope, proportional and multi-axis kinds
// are refused.
enum class RopeKind : uint8_t { standard, linear, dynamic, llama3, yarn };

struct RopeConfig {
  RopeKind kind = RopeKind::standard;
  double theta = 10000;
  double factor = 1;
  double original_max_position = 0;  // llama3, yarn
  double low_freq_factor = 1;        // llama3
  double high_freq_factor = 4;       // llama3
  double beta_fast = 32;             // yarn
  double beta_slow = 1;              // yarn
  double attention_factor =
      1;  // yarn: what cos and sin are multiplied by, already worked out from mscale and factor
  bool truncate = true;  // yarn
};

struct ModelConfig {
  std::string model_type;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t n_layers = 0;
  int64_t n_heads = 0;
  int64_t n_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t vocab_size = 0;
  int64_t max_position = 0;
  int64_t sliding_window = 0;  // 0: none
  double rms_norm_eps = 1e-6;
  bool attention_bias = false;
  bool mlp_bias = false;
  bool tied = false;  // lm_head is the embedding
  RopeConfig rope;

  // The longest text the model takes: max_position, or factor times it where the rope kind grows with the
  // text (dynamic).
  int64_t max_length() const;
};

// What of it the weights do not tell: two models of the same tensors that differ here compute something else.
std::map<std::string, std::string> mathematics(const ModelConfig& config);

// `text` is the content of config.json. FormatError names the key.
ModelConfig parse_config(const std::string& text);
// Reads <folder>/config.json.
ModelConfig load_config(const std::string& folder);

}  // namespace smezo
