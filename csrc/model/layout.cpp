// Roles to ids, through the canonical names.
#include "model/layout.h"

#include <string>
#include <unordered_map>

#include "model/model.h"

namespace smezo {

ModelTensors tensors_of(const ModelConfig& config) {
  ModelTensors out;
  std::unordered_map<std::string, int64_t> ids;
  for (const ParameterSpec& p : parameters_of(config)) {
    const int64_t id = static_cast<int64_t>(ids.size());
    ids[p.name] = id;
  }
  const auto find = [&](const std::string& name) {
    const auto it = ids.find(name);
    return it == ids.end() ? kNoTensor : it->second;
  };
  out.embedding = find("model.embed_tokens.weight");
  out.norm = find("model.norm.weight");
  out.head = config.tied ? out.embedding : find("lm_head.weight");
  for (int64_t l = 0; l < config.n_layers; ++l) {
    const std::string layer = "model.layers." + std::to_string(l) + ".";
    const auto weight = [&](const char* name) { return find(layer + name + ".weight"); };
    const auto bias = [&](const char* name) { return find(layer + name + ".bias"); };
    LayerTensors t;
    t.input_norm = weight("input_layernorm");
    t.post_norm = weight("post_attention_layernorm");
    t.q = weight("self_attn.q_proj"), t.q_bias = bias("self_attn.q_proj");
    t.k = weight("self_attn.k_proj"), t.k_bias = bias("self_attn.k_proj");
    t.v = weight("self_attn.v_proj"), t.v_bias = bias("self_attn.v_proj");
    t.o = weight("self_attn.o_proj"), t.o_bias = bias("self_attn.o_proj");
    t.gate = weight("mlp.gate_proj"), t.gate_bias = bias("mlp.gate_proj");
    t.up = weight("mlp.up_proj"), t.up_bias = bias("mlp.up_proj");
    t.down = weight("mlp.down_proj"), t.down_bias = bias("mlp.down_proj");
    for (const int64_t id : {t.input_norm, t.post_norm, t.q_bias, t.k_bias, t.v_bias, t.o_bias, t.gate_bias,
                             t.up_bias, t.down_bias}) {
      if (id != kNoTensor) t.vectors.push_back(id);
    }
    out.layers.push_back(t);
  }
  return out;
}

}  // namespace smezo
