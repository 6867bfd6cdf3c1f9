#include "engine/method.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "direction/threshold.h"
#include "model/beside.h"
#include "model/factors.h"

namespace smezo {
namespace {

constexpr int kMaxBranches = 128;
constexpr int kMaxWindow = 64;

// '*' any run, '?' any one character. Only the last '*' is tried again: a pattern comes from a file that
// somebody sent, and trying all of them takes time that grows exponentially with their number.
bool glob(const char* p, const char* s) {
  const char *star = nullptr, *begin = nullptr;
  while (*s) {
    if (*p == '*') {
      star = ++p, begin = s;
    } else if (*p == '?' || *p == *s) {
      ++p, ++s;
    } else if (star) {
      p = star, s = ++begin;
    } else {
      return false;
    }
  }
  while (*p == '*') ++p;
  return !*p;
}

void require(bool ok, const std::string& what) { check<ArgumentError>(ok, "method", what); }

void check_numbers(const MethodConfig& m) {
  require(m.sparsity >= 0 && m.sparsity < 1,
          "sparsity " + text(m.sparsity) +
              ", expected 0 <= sparsity < 1: it is the frozen fraction, and at 1 nothing would train");
  require(!m.has_index_set() || m.index_set == IndexKind::file || (m.fraction > 0 && m.fraction <= 0.5),
          "fraction " + text(m.fraction) +
              ", expected more than 0 and at most 0.5: the share of each tensor that trains");
  require(m.queries >= 1 && m.queries <= kMaxBranches && m.n_branches() <= kMaxBranches,
          std::to_string(m.queries) + " queries, expected 1 to " +
              std::to_string(m.plan == QueryPlan::two_sided ? kMaxBranches / 2 : kMaxBranches - 1) +
              ": a visit has at most " + std::to_string(kMaxBranches) + " branches");
  require(std::isfinite(m.weight_decay) && m.weight_decay >= 0,
          "weight decay " + text(m.weight_decay) + ", expected a finite number not below 0");
  require(m.drop >= 0 && m.drop < 1,
          "drop " + text(m.drop) + ", expected 0 <= drop < 1: the share of layers that sit a step out");
  if (m.low_rank != LowRankKind::none) {
    require(m.rank >= 1 && m.rank <= kMaxRank,
            "rank " + std::to_string(m.rank) + ", expected 1 to " + std::to_string(kMaxRank));
    require(m.low_rank == LowRankKind::utv || (m.refresh >= 1 && m.refresh <= 1 << 30),
            "refresh " + std::to_string(m.refresh) + ", expected 1 to 2^30 steps");
  }
  if (n_moments(m.rule) == 0) return;
  // As the rules have them, in fp32.
  const auto is_share = [](double beta) { return beta >= 0 && static_cast<float>(beta) < 1; };
  require(is_share(m.beta1) && is_share(m.beta2),
          "beta1 " + text(m.beta1) + " and beta2 " + text(m.beta2) + ", expected 0 <= beta < 1 in fp32");
  require(std::isfinite(m.adam_eps) && static_cast<float>(m.adam_eps) > 0,
          "adam_eps " + text(m.adam_eps) + ", expected a small number, positive in fp32");
  require(m.window >= 0 && m.window <= kMaxWindow, "window " + std::to_string(m.window) + ", expected 1 to " +
                                                       std::to_string(kMaxWindow) +
                                                       " records, or 0 to keep the moments");
  require(m.rule != RuleKind::hizoo || (m.smoothing > 0 && m.smoothing < 1),
          "smoothing " + text(m.smoothing) + ", expected a number between 0 and 1");
}

void check_parts(const MethodConfig& m) {
  const bool low_rank = m.low_rank != LowRankKind::none, masked = m.mask != MaskKind::all && m.sparsity > 0;
  require(!low_rank || (!masked && !m.has_index_set()),
          "a low-rank direction with a mask or an index set, expected one of them: the product of two thin "
          "matrices has no single elements to leave out");
  require(!m.has_index_set() || !masked, "a mask and an index set, expected one of them");
  require(m.low_rank != LowRankKind::utv || m.refresh == 0,
          "refresh " + std::to_string(m.refresh) +
              " with U diag(tau) V^T, expected 0: its factors are of the run");
  require(!m.only_reads || low_rank,
          "a base that is only read with a dense direction, expected a low-rank one");
  require(!m.only_reads || m.low_rank == LowRankKind::utv || m.rule == RuleKind::sgd,
          std::string("rule ") + word(m.rule) +
              " with factors that change beside a base that is only read, expected sgd");
  require(m.rank_cap == 0 || (m.only_reads && m.low_rank != LowRankKind::utv),
          "rank_cap " + std::to_string(m.rank_cap) +
              ", expected it only where factors change beside a base that is only read");
  require(!m.only_reads || m.low_rank == LowRankKind::utv || m.rank_cap >= m.rank,
          "rank_cap " + std::to_string(m.rank_cap) +
              " below the rank of one epoch's factors, expected at least " + std::to_string(m.rank) +
              ": the rank that may pile up beside a base that is only read");
  require(m.rank_cap >= 0 && m.rank_cap <= kMaxRank,
          "rank_cap " + std::to_string(m.rank_cap) + ", expected at most " + std::to_string(kMaxRank));
  require(!m.lies_beside() || m.weight_decay == 0,
          "weight decay " + text(m.weight_decay) +
              " over a base that is only read, expected 0: decay would have to move all of it");
  require(!low_rank || m.window == 0,
          "a window with a low-rank direction, expected 0: its moments are small");
  require(!low_rank || m.rule == RuleKind::sgd || m.only_reads ||
              (m.low_rank == LowRankKind::utv && m.rule == RuleKind::adam) ||
              (m.low_rank == LowRankKind::uv && m.rule == RuleKind::momentum),
          std::string("rule ") + word(m.rule) + " with low rank " + word(m.low_rank) +
              ", expected sgd; momentum with U V^T; adam with U diag(tau) V^T; any with fixed factors over a "
              "base that is only read");
  require(!m.only_reads || m.rule != RuleKind::hizoo,
          "rule hizoo with a low-rank direction, expected a dense one");
  require((m.rule == RuleKind::hizoo) == (m.plan == QueryPlan::curved),
          "rule hizoo takes the curved query plan, and that plan takes no other rule");
  require(m.rule != RuleKind::hizoo || (m.queries == 1 && m.window == 0 && !low_rank),
          "rule hizoo with several queries, a window or a low-rank direction, expected one dense query");
  require(m.rule != RuleKind::hizoo || m.noise != NoiseKind::rademacher,
          "rule hizoo with rademacher noise, expected a Gaussian: z^2 is 1 everywhere, so that all elements "
          "would get the same curvature");
  require(m.estimator != Estimator::deviation || (m.plan == QueryPlan::one_sided && m.queries >= 2),
          "scalars over the deviation of the losses with " + std::to_string(m.queries) + " " + word(m.plan) +
              " queries, expected one-sided ones and at least 2: one loss has none");
  require(m.window == 0 || m.rule == RuleKind::momentum || m.rule == RuleKind::adam,
          std::string("a window with rule ") + word(m.rule) + ", expected momentum or adam");
  require(m.drop == 0 || !low_rank || m.rule == RuleKind::sgd,
          std::string("rule ") + word(m.rule) + " of low rank in layers that sit steps out, expected sgd");
  require(m.drop == 0 || (m.window == 0 && (m.rule != RuleKind::adam || !m.corrected)),
          "layers that sit steps out with a window, or with adam whose bias is taken out, expected moments "
          "that are kept, and corrected=False: how many steps a moment has seen differs from layer to layer");
}

}  // namespace

// At sparsity 0 every mask is the whole tensor, so that all kinds equal MeZO bit for bit.
MaskKind mask_kind(const MethodConfig& m) { return m.sparsity > 0 ? m.mask : MaskKind::all; }

void check_method(const MethodConfig& m) {
  check_numbers(m);
  check_parts(m);
}

int64_t n_resting(const MethodConfig& m, int64_t n_layers) {
  return std::min(static_cast<int64_t>(std::lround(m.drop * static_cast<double>(n_layers))), n_layers - 1);
}

int64_t low_rank_kept_bytes(const MethodConfig& m, int64_t rows, int64_t cols) {
  const LowRank d = m.low_rank_of();
  if (!d) return 0;
  const int64_t epochs = m.only_reads ? m.most_rank() / m.rank : 1;
  return epochs * (Factors::kept_bytes(d, rows, cols) +
                   (m.only_reads ? block_size_of(d, rows) * static_cast<int64_t>(sizeof(float)) : 0));
}

int64_t n_moments_of(const MethodConfig& m, int64_t rows, int64_t cols, int64_t n_indexed) {
  if (!m.keeps_moments() || m.lies_beside()) return 0;
  if (m.low_rank != LowRankKind::none) return m.low_rank == LowRankKind::uv ? rows * m.rank : 0;
  return m.has_index_set() ? n_indexed : rows * cols;
}

std::vector<int> layers_of(const std::vector<ParameterSpec>& parameters) {
  std::vector<int> out;
  const std::string prefix = "model.layers.";
  for (const ParameterSpec& p : parameters)
    out.push_back(p.name.rfind(prefix, 0) == 0 ? std::stoi(p.name.substr(prefix.size())) : -1);
  return out;
}

// A layer without anything that trains would be drawn like the others, and a step of such layers asks
// nothing.
static void check_every_layer_trains(const MethodConfig& m, const std::vector<bool>& trained,
                                     const std::vector<int>& layers) {
  std::vector<int> n_trained;
  for (size_t i = 0; i < layers.size(); ++i) {
    if (layers[i] < 0) continue;
    if (layers[i] >= static_cast<int>(n_trained.size())) n_trained.resize(layers[i] + 1);
    n_trained[layers[i]] += trained[i];
  }
  for (size_t i = 0; i < n_trained.size(); ++i)
    check<ArgumentError>(n_trained[i] > 0, "method",
                         "trains '" + m.trains + "' trains nothing of layer " + std::to_string(i) +
                             " where layers sit steps out, expected something of each of the " +
                             std::to_string(n_trained.size()));
}

std::vector<bool> trained_tensors(const MethodConfig& m, const std::vector<ParameterSpec>& parameters) {
  std::vector<bool> out;
  bool any = false;
  for (const ParameterSpec& p : parameters) {
    const bool t =
        m.trains == "all" || (m.trains == "linear" ? p.block_linear : glob(m.trains.c_str(), p.name.c_str()));
    check<ArgumentError>(
        !t || !m.has_index_set() || p.block_linear, "method",
        "an index set on '" + p.name + "', expected only linear weights of the decoder blocks");
    check<ArgumentError>(
        !t || m.low_rank == LowRankKind::none || p.block_linear, "method",
        "a low-rank direction of '" + p.name + "', expected only linear weights of the decoder blocks");
    check<ArgumentError>(
        !t || m.low_rank == LowRankKind::none || m.all_ranks() <= std::min(p.rows, p.cols), "method",
        "rank " + std::to_string(m.rank) +
            (m.rank_cap > 0 ? " and rank_cap " + std::to_string(m.rank_cap) + " beside it" : "") + " of '" +
            p.name + "' [" + std::to_string(p.rows) + ", " + std::to_string(p.cols) +
            "], expected at most its smaller side in all");
    out.push_back(t);
    any |= t;
  }
  check<ArgumentError>(
      any, "method",
      "trains '" + m.trains + "' matches no parameter, expected linear, all or a glob pattern such as " +
          "'*.mlp.*'; the first parameter is " + (parameters.empty() ? "absent" : parameters[0].name));
  if (m.drop > 0) check_every_layer_trains(m, out, layers_of(parameters));
  return out;
}

TensorMethod tensor_method(const MethodConfig& m, bool trained, int layer) {
  TensorMethod t;
  t.trained = trained;
  t.noise = m.noise;
  t.layer = m.drop > 0 ? layer : -1;
  t.rule = m.rule;
  t.only_read = m.leaves_base();
  if (trained) t.low_rank = m.low_rank_of();
  t.most_rank = m.all_ranks();
  return t;
}

Selection select(const MethodConfig& m, const std::vector<bool>& trained, const std::vector<int>& layers,
                 Store& store, const Kernels& kernels, ThreadPool& pool) {
  Selection s;
  const MaskKind kind = mask_kind(m);
  for (uint32_t id = 0; id < trained.size(); ++id) {
    TensorMethod t = tensor_method(m, trained[id], layers[id]);
    int64_t n_selected = 0;
    if (t.trained && store.overlay(id)) {
      n_selected = store.overlay(id)->n();
    } else if (t.trained && m.lies_beside()) {
      n_selected = block_size_of(t.low_rank, store.request(id).rows);
    } else if (t.trained) {
      const WeightView w = store.shape(id);
      const Pieces pieces = [&](const auto& body) {
        store.for_state(id, kernels, pool, nullptr, [&](const WeightView& v, int64_t row0, int64_t n) {
          body(v, row0 * v.cols, n * v.cols);
        });
      };
      n_selected = w.n();
      if (kind != MaskKind::all) {
        const Threshold th = kind == MaskKind::large ? largest_threshold(pieces, w.n(), m.sparsity, &pool)
                                                     : smallest_threshold(pieces, w.n(), m.sparsity, &pool);
        t.mask.kind = kind;
        t.mask.h = th.h;
        n_selected = th.n_selected;
        if (kind == MaskKind::random) {
          const double density = static_cast<double>(th.n_selected) / static_cast<double>(w.n());
          t.mask.h = 0;
          t.mask.keep = static_cast<uint32_t>(std::lround(density * 65536));
          check<ArgumentError>(t.mask.keep > 0, "method",
                               "a random mask that keeps " + text(density) + " of '" +
                                   store.request(id).name +
                                   "', expected at least 1/65536, the step in which its share is drawn");
          n_selected = static_cast<int64_t>(t.mask.keep / 65536.0 * static_cast<double>(w.n()));
        }
      }
    }
    s.tensors.push_back(t);
    s.n_selected.push_back(n_selected);
  }
  return s;
}

}  // namespace smezo
