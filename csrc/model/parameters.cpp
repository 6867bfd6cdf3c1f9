// Names and shapes of the llama family's parameters. Ids are ranks in byte order, so layer 10 comes before
// layer 2 (I6).
#include <algorithm>

#include "model/model.h"

namespace smezo {

std::vector<ParameterSpec> parameters_of(const ModelConfig& c) {
  const int64_t d = c.hidden_size, f = c.intermediate_size;
  const int64_t q = c.n_heads * c.head_dim, kv = c.n_kv_heads * c.head_dim;
  std::vector<ParameterSpec> out = {{"model.embed_tokens.weight", c.vocab_size, d, false},
                                    {"model.norm.weight", 1, d, false}};
  if (!c.tied) out.push_back({"lm_head.weight", c.vocab_size, d, false});
  for (int64_t l = 0; l < c.n_layers; ++l) {
    const std::string layer = "model.layers." + std::to_string(l) + ".";
    const auto linear = [&](const std::string& name, int64_t rows, int64_t cols, bool bias) {
      out.push_back({layer + name + ".weight", rows, cols, true});
      if (bias) out.push_back({layer + name + ".bias", 1, rows, false});
    };
    out.push_back({layer + "input_layernorm.weight", 1, d, false});
    out.push_back({layer + "post_attention_layernorm.weight", 1, d, false});
    linear("self_attn.q_proj", q, d, c.attention_bias);
    linear("self_attn.k_proj", kv, d, c.attention_bias);
    linear("self_attn.v_proj", kv, d, c.attention_bias);
    linear("self_attn.o_proj", d, q, c.attention_bias);
    linear("mlp.gate_proj", f, d, c.mlp_bias);
    linear("mlp.up_proj", f, d, c.mlp_bias);
    linear("mlp.down_proj", d, f, c.mlp_bias);
  }
  std::sort(out.begin(), out.end(),
            [](const ParameterSpec& a, const ParameterSpec& b) { return a.name < b.name; });
  return out;
}

}  // namespace smezo
