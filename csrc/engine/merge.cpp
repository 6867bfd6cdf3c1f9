// The whole model at the journal's tail, read out: as fp32 pieces, and as a Hugging Face folder.
#include <algorithm>

#include "base/error.h"
#include "engine/engine_impl.h"
#include "format/half.h"
#include "io/json.h"
#include "store/new_checkpoint.h"

namespace smezo {
namespace {

constexpr int64_t kPieceElements = 1 << 18;

// config.json as it is for weights in `dtype` that nothing quantizes.
std::string merged_config(const std::string& model_dir, DType dtype) {
  const Json config = Json::parse(read_all(join(model_dir, "config.json")), "config.json");
  Json out = Json::object();
  bool named = false;
  for (const auto& [key, value] : config.as_object("config.json")) {
    const bool is_dtype = key == "dtype" || key == "torch_dtype";
    named |= is_dtype;
    if (is_dtype) {
      out.set(key, dtype == DType::F32 ? "float32" : "bfloat16");
    } else if (key != "quantization_config") {
      out.set(key, value);
    }
  }
  if (!named) out.set("torch_dtype", dtype == DType::F32 ? "float32" : "bfloat16");
  return out.dump();
}

}  // namespace

void Engine::Impl::for_rows(uint32_t id, const Store::OnRows& body) {
  if (selection.tensors[id].trained && !selection.tensors[id].only_read) return pending->for_state(id, body);
  flush();
  store->for_units(id, [&](const Unit& u, const WeightView& w) { body(w, u.row0, u.n_rows); });
  if (store->request(id).rows > 1 && !store->request(id).trained) store->rest(id);
}

// += what lies beside rows [row0, row0 + n), a block after the other.
static void add_beside(Engine::Impl& m, uint32_t id, int64_t row0, int64_t n, int64_t cols, float* values) {
  const LowRank& d = m.selection.tensors[id].low_rank;
  const Beside& beside = m.besides->at(id);
  const int64_t r = d.rank;
  std::vector<float> v(static_cast<size_t>(r * cols));
  for (uint32_t e = 0; e < static_cast<uint32_t>(beside.n_blocks()); ++e) {
    const std::shared_ptr<const Factors> factors = m.factors->of(d, id, m.parameters[id].rows, cols, e);
    const float* const block = beside.block(e);
    m.pool.run(r, [&](int64_t s, int) { factors->v_column(static_cast<int>(s), v.data() + s * cols); });
    m.pool.run(n, [&](int64_t i, int) {
      std::vector<float> u(static_cast<size_t>(r)), a(u.size(), 0.0f),
          change(static_cast<size_t>(cols), 0.0f);
      if (d.kind == LowRankKind::uv) {
        std::copy_n(block + (row0 + i) * r, r, a.begin());
      } else {
        factors->u_rows(row0 + i, 1, 0, 0, u.data());
        for (int64_t s = 0; s < r; ++s) {
          const float x = u[static_cast<size_t>(s)] * factors->scale();
          if (d.kind == LowRankKind::utv) a[static_cast<size_t>(s)] = x * block[s];
          for (int64_t t = 0; d.kind == LowRankKind::uzv && t < r; ++t)
            a[static_cast<size_t>(t)] += x * block[s * r + t];
        }
      }
      for (int64_t s = 0; s < r; ++s) {
        for (int64_t j = 0; j < cols; ++j)
          change[static_cast<size_t>(j)] += a[static_cast<size_t>(s)] * v[static_cast<size_t>(s * cols + j)];
      }
      for (int64_t j = 0; j < cols; ++j) values[i * cols + j] += change[static_cast<size_t>(j)];
    });
  }
}

// fp32 values of rows [row0, row0 + n) of a view, with what lies beside it.
static void decode_rows(Engine::Impl& m, uint32_t id, const WeightView& w, int64_t row0, int64_t n,
                        float* values) {
  const IndexOverlay* const overlay = m.store->overlay(id);
  m.pool.run(n, [&](int64_t i, int) {
    float* const row = values + i * w.cols;
    m.kernels.decode(w, (row0 + i) * w.cols, w.cols, row);
    if (overlay) patch_values(*overlay, row0 + i, 1, w.cols, row);
  });
  if (m.besides->of(id)) add_beside(m, id, row0, n, w.cols, values);
}

void Engine::Impl::for_values(uint32_t id, const std::function<void(const float*, int64_t, int64_t)>& body) {
  std::vector<float> values;
  for_rows(id, [&](const WeightView& w, int64_t row0, int64_t n) {
    const int64_t step = std::max<int64_t>(1, kPieceElements / w.cols);
    values.resize(static_cast<size_t>(std::min(step, n) * w.cols));
    for (int64_t r = row0; r < row0 + n; r += step) {
      const int64_t k = std::min(step, row0 + n - r);
      decode_rows(*this, id, w, r, k, values.data());
      body(values.data(), r, k);
    }
  });
}

// A tensor as bf16: the nearest, and of values with a tail the half that products take (I10), which differs
// from it where a tail lies half way.
static void for_halves(Engine::Impl& m, uint32_t id,
                       const std::function<void(const uint16_t*, int64_t n)>& body) {
  std::vector<float> values;
  std::vector<uint16_t> halves;
  m.for_rows(id, [&](const WeightView& w, int64_t row0, int64_t n) {
    if ((w.dtype == DType::BF16T8 || w.dtype == DType::BF16) && !m.selection.tensors[id].only_read)
      return body(static_cast<const uint16_t*>(w.data) + (row0 * w.cols - w.first), n * w.cols);
    const int64_t step = std::max<int64_t>(1, kPieceElements / w.cols);
    values.resize(static_cast<size_t>(std::min(step, n) * w.cols));
    halves.resize(values.size());
    for (int64_t r = row0; r < row0 + n; r += step) {
      const int64_t k = std::min(step, row0 + n - r);
      decode_rows(m, id, w, r, k, values.data());
      for (int64_t i = 0; i < k * w.cols; ++i)
        halves[static_cast<size_t>(i)] = f32_to_bf16(values[static_cast<size_t>(i)]);
      body(halves.data(), k * w.cols);
    }
  });
}

int64_t Engine::merge(const std::string& path, DType dtype, int64_t shard_bytes, const OnProgress& progress) {
  Impl& m = *impl_;
  check<ArgumentError>(dtype == DType::F32 || dtype == DType::BF16, "merge",
                       std::string(dtype_name(dtype)) + ", expected F32 or BF16");
  sync();  // I2: what is merged is what the journal holds
  NewFolder folder(path);
  std::vector<uint32_t> ids(m.parameters.size());
  for (uint32_t id = 0; id < ids.size(); ++id) ids[id] = id;
  // As they lie in the base, so that reading runs forward.
  std::sort(ids.begin(), ids.end(), [&](uint32_t a, uint32_t b) {
    const TensorEntry &x = *m.store->base(a).data, &y = *m.store->base(b).data;
    return std::pair(x.shard, x.offset) < std::pair(y.shard, y.offset);
  });
  std::vector<TensorGroup> groups;
  int64_t all = 0, done = 0;
  for (const uint32_t id : ids) {
    const ParameterSpec& p = m.parameters[id];
    const std::vector<int64_t> shape =
        p.rows > 1 ? std::vector<int64_t>{p.rows, p.cols} : std::vector<int64_t>{p.cols};
    groups.push_back({{p.name, dtype_name(dtype), shape}});
    all += p.rows * p.cols * dtype_bytes(dtype);
  }
  write_shards(folder.path(), groups, shard_bytes, [&](size_t group, SafetensorsSink& sink, size_t first) {
    const uint32_t id = ids[group];
    const auto write = [&](const void* values, int64_t n_bytes) {
      sink.write(first, values, n_bytes);
      done += n_bytes;
      if (progress) progress(done, all);
    };
    if (dtype == DType::F32) {
      const int64_t cols = m.parameters[id].cols;
      m.for_values(id, [&](const float* values, int64_t, int64_t n) { write(values, n * cols * 4); });
    } else {
      for_halves(m, id, [&](const uint16_t* values, int64_t n) { write(values, n * 2); });
    }
  });
  write_atomically(join(folder.path(), "config.json"), merged_config(m.options.model_dir, dtype));
  copy_other_files(m.options.model_dir, folder.path());
  folder.finish();
  return all;
}

}  // namespace smezo
