// What training changed as a SHiRA adapter of PEFT (Bhardwaj et al. 2024, arXiv 2406.13175; file format:
// peft/tuners/shira): sparse differences to the weights of linear layers.
//
// PEFT has one rank r for all modules and wants r * (in + out) values in each, at most in * out: what a
// module lacks is filled up with zeros at element (0, 0), which a sparse tensor adds up.
#include <algorithm>

#include "base/error.h"
#include "engine/engine_impl.h"
#include "format/codec.h"
#include "io/json.h"
#include "store/new_checkpoint.h"

namespace smezo {
namespace {

const std::string kWeight = ".weight";

// Calls body(element, difference) for every element whose value differs from the base's, in order.
template <class Body>
void for_differences(Engine::Impl& m, uint32_t id, const Body& body) {
  const auto tell = [&](int64_t e, float trained, float base) {
    if (trained != base) body(e, trained - base);
  };
  if (const IndexOverlay* o = m.store->overlay(id)) {
    m.for_rows(id, [&](const WeightView& w, int64_t row0, int64_t n) {
      for (uint32_t i = o->row_begin[static_cast<size_t>(row0)], row = 0; row < n; ++row) {
        const int64_t r = row0 + row;
        for (; i < o->row_begin[static_cast<size_t>(r) + 1]; ++i)
          tell(r * w.cols + o->col[i], o->value[i], decode_at(w, r * w.cols + o->col[i]));
      }
    });
    return;
  }
  std::vector<float> base;
  const int64_t cols = m.store->shape(id).cols;
  m.for_values(id, [&](const float* values, int64_t row0, int64_t n) {
    base.resize(static_cast<size_t>(n * cols));
    m.store->base_values(id, row0 * cols, n * cols, base.data());
    for (size_t i = 0; i < base.size(); ++i) tell(row0 * cols + static_cast<int64_t>(i), values[i], base[i]);
  });
}

struct Module {
  uint32_t id;
  std::string name;  // of the layer
  int64_t rows, cols, n = 0;
};

// The modules that changed, with how many values of each did.
std::vector<Module> changed_modules(Engine::Impl& m) {
  std::vector<Module> out;
  for (uint32_t id = 0; id < m.parameters.size(); ++id) {
    if (!m.selection.tensors[id].trained) continue;
    const ParameterSpec& p = m.parameters[id];
    Module module{id, p.name, p.rows, p.cols};
    for_differences(m, id, [&](int64_t, float) { ++module.n; });
    if (module.n == 0) continue;
    check<ArgumentError>(p.block_linear && p.name.ends_with(kWeight), "export",
                         "'" + p.name +
                             "' has changed, expected weights of linear layers only: a SHiRA adapter holds "
                             "nothing else; merge writes a whole model");
    module.name.resize(p.name.size() - kWeight.size());
    out.push_back(std::move(module));
  }
  check<ArgumentError>(!out.empty(), "export", "nothing differs from the base, expected a trained model");
  return out;
}

int64_t rank_for(const std::vector<Module>& modules) {
  int64_t r = 1;
  for (const Module& x : modules) r = std::max(r, (x.n + x.rows + x.cols - 1) / (x.rows + x.cols));
  for (const Module& x : modules)
    check<ArgumentError>(r * (x.rows + x.cols) <= x.rows * x.cols, "export",
                         "too many values have changed: PEFT wants one rank for all modules, it would be " +
                             std::to_string(r) + ", and '" + x.name + "' has room for " +
                             std::to_string(x.rows * x.cols / (x.rows + x.cols)) +
                             "; merge writes a whole model");
  return r;
}

std::string adapter_config(const std::string& model_dir, const AdapterInfo& info) {
  Json modules = Json::array();
  for (const std::string& name : info.modules) modules.push(name);
  Json j = Json::object();
  j.set("peft_type", "SHIRA");
  j.set("task_type", "CAUSAL_LM");
  j.set("base_model_name_or_path", model_dir);
  j.set("inference_mode", true);
  j.set("r", info.r);
  // Any name but "random", with which PEFT draws a mask of the layer's size before it reads the file's.
  j.set("mask_type", "pysmezo");
  j.set("target_modules", std::move(modules));
  j.set("fan_in_fan_out", false);
  j.set("init_weights", true);
  return j.dump();
}

}  // namespace

AdapterInfo Engine::export_shira(const std::string& path) {
  Impl& m = *impl_;
  check<ArgumentError>(
      !m.header.method.lies_beside(), "export",
      "a low-rank change of whole matrices, expected single values that changed; merge writes "
      "such a model");
  sync();  // I2
  NewFolder folder(path);
  const std::vector<Module> modules = changed_modules(m);
  AdapterInfo info;
  info.r = rank_for(modules);
  std::vector<TensorSpec> specs;
  for (const Module& x : modules) {
    const int64_t n = info.r * (x.rows + x.cols);
    const std::string name = "base_model.model." + x.name;
    specs.push_back({name + ".shira_weight", "F32", {n}});
    specs.push_back({name + ".shira_indices", "I32", {2, n}});
    info.modules.push_back(x.name);
    info.n_values += x.n;
    info.n_bytes += n * 12;
  }
  write_safetensors(join(folder.path(), "adapter_model.safetensors"), specs, {{"format", "pt"}},
                    [&](SafetensorsSink& sink) {
                      for (size_t i = 0; i < modules.size(); ++i) {
                        const Module& x = modules[i];
                        const size_t n = static_cast<size_t>(info.r * (x.rows + x.cols));
                        std::vector<float> values;
                        std::vector<int32_t> rows, cols;
                        values.reserve(n), rows.reserve(n), cols.reserve(n);
                        for_differences(m, x.id, [&](int64_t e, float d) {
                          values.push_back(d);
                          rows.push_back(static_cast<int32_t>(e / x.cols));
                          cols.push_back(static_cast<int32_t>(e % x.cols));
                        });
                        values.resize(n), rows.resize(n), cols.resize(n);
                        const int64_t n_bytes = static_cast<int64_t>(n) * 4;
                        sink.write(2 * i, values.data(), n_bytes);
                        sink.write(2 * i + 1, rows.data(), n_bytes);
                        sink.write(2 * i + 1, cols.data(), n_bytes);
                      }
                    });
  write_atomically(join(folder.path(), "adapter_config.json"), adapter_config(m.options.model_dir, info));
  folder.finish();
  return info;
}

}  // namespace smezo
