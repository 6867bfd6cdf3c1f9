// The table of families. Llama 1-3, SmolLM, SmolLM2, TinyLlama and Vicuna all say "llama".
#include "model/family.h"

#include "base/error.h"

namespace smezo {
namespace {

// model_type, attention_bias, mlp_bias, sliding_window, default window, default kv heads, default
// max_position_embeddings
constexpr Family kFamilies[] = {
    {"llama", true, true, false, 0, 0, 2048},
    {"mistral", false, false, true, 4096, 8, 131072},
};

}  // namespace

const Family& family_of(const std::string& model_type) {
  std::string known;
  for (const Family& f : kFamilies) {
    if (model_type == f.model_type) return f;
    known += (known.empty() ? "" : ", ") + std::string(f.model_type);
  }
  fail<FormatError>("config", "model_type '" + model_type + "' is not known; known: " + known);
}

}  // namespace smezo
