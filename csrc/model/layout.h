// Tensor ids of a model's parameters by the role they play.
#pragma once
#include <cstdint>
#include <vector>

#include "model/config.h"

namespace smezo {

constexpr int64_t kNoTensor = -1;

struct LayerTensors {
  int64_t input_norm, post_norm;
  int64_t q, k, v, o, gate, up, down;
  int64_t q_bias, k_bias, v_bias, o_bias, gate_bias, up_bias,
      down_bias;                 // kNoTensor where the config has none
  std::vector<int64_t> vectors;  // norms and biases
};

struct ModelTensors {
  int64_t embedding, norm, head;  // head is embedding when tied (I7)
  std::vector<LayerTensors> layers;
};

ModelTensors tensors_of(const ModelConfig& config);

}  // namespace smezo
