// Model families as rows of data. A family says which keys of config.json it obeys and what an absent key
// means; the forward is one.
#pragma once
#include <cstdint>
#include <string>

namespace smezo {

// Defaults are those of the configuration classes of transformers, which leave out keys that have the default
// value.
struct Family {
  const char* model_type;
  bool attention_bias;             // the key attention_bias is obeyed (q, k, v and o then have biases)
  bool mlp_bias;                   // the key mlp_bias is obeyed
  bool sliding_window;             // the key sliding_window is obeyed
  int64_t default_sliding_window;  // 0: none
  int64_t default_kv_heads;        // 0: as many as heads
  int64_t default_max_position;
};

// FormatError for a model_type not in the table; lists the known ones.
const Family& family_of(const std::string& model_type);

}  // namespace smezo
