#include "engine/run_header.h"

#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/error.h"
#include "engine/names.h"
#include "io/json.h"

namespace smezo {
namespace {

constexpr Named<DType> kValues[] = {{"fp32", DType::F32}, {"bf16+8", DType::BF16T8}, {"bf16", DType::BF16}};
constexpr Named<OperandMode> kOperands[] = {
    {"nearest", OperandMode::nearest}, {"dither", OperandMode::dither}, {"split", OperandMode::split}};
constexpr Named<Reduction> kReductions[] = {{"example", Reduction::example}, {"token", Reduction::token}};
constexpr Named<Compute> kComputes[] = {{"fp32", Compute::f32}, {"bf16", Compute::bf16}};
// fp32 values travel as their bits, so that nothing is lost or rounded on the way.
Json bits(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return Json(u);
}
float from_bits(const Json& j, const std::string& what) {
  const int64_t wide = j.as_int(what);
  check<FormatError>(wide >= 0 && wide <= std::numeric_limits<uint32_t>::max(), what.c_str(),
                     std::to_string(wide) + ", expected the 32 bits of a number");
  const uint32_t u = static_cast<uint32_t>(wide);
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}

constexpr int64_t kMostElements = int64_t{1} << 40;  // of a tensor, far above any

std::string digits(double x) { return Json(x).dump(); }  // as many as tell it from every other

// What the first headers did not have.
Json parts_of(const MethodConfig& m) {
  Json p = Json::object();
  p.set("mask", mask_name(m.mask));
  p.set("index_set", index_kind_name(m.index_set));
  p.set("drop", m.drop);
  p.set("low_rank", low_rank_name(m.low_rank));
  p.set("rank", m.rank);
  p.set("refresh", m.refresh);
  p.set("only_reads", m.only_reads);
  p.set("rank_cap", m.rank_cap);
  p.set("plan", plan_name(m.plan));
  p.set("estimator", estimator_name(m.estimator));
  p.set("over_eps", m.over_eps);
  p.set("rule", rule_name(m.rule));
  p.set("beta1", m.beta1);
  p.set("beta2", m.beta2);
  p.set("adam_eps", m.adam_eps);
  p.set("damped", m.damped);
  p.set("corrected", m.corrected);
  p.set("window", m.window);
  p.set("smoothing", m.smoothing);
  return p;
}

void read_parts(const Json& p, const char* where, MethodConfig* m) {
  const std::string what = where;
  const auto text = [&](const char* key) { return p.at(key, what).as_string(what); };
  const auto number = [&](const char* key) { return p.at(key, what).as_double(what); };
  const auto integer = [&](const char* key) {
    const int64_t n = p.at(key, what).as_int(what);
    check<FormatError>(n >= 0 && n <= std::numeric_limits<int>::max(), where,
                       std::string(key) + " " + std::to_string(n) + ", expected a number of a method");
    return static_cast<int>(n);
  };
  const auto truth = [&](const char* key) { return p.at(key, what).as_bool(what); };
  m->mask = mask_from_name(text("mask"));
  m->index_set = index_kind_from_name(text("index_set"));
  m->drop = number("drop");
  m->low_rank = low_rank_from_name(text("low_rank"));
  m->rank = integer("rank");
  m->refresh = integer("refresh");
  m->only_reads = truth("only_reads");
  m->rank_cap = integer("rank_cap");
  m->plan = plan_from_name(text("plan"));
  m->estimator = estimator_from_name(text("estimator"));
  m->over_eps = truth("over_eps");
  m->rule = rule_from_name(text("rule"));
  m->beta1 = number("beta1");
  m->beta2 = number("beta2");
  m->adam_eps = number("adam_eps");
  m->damped = truth("damped");
  m->corrected = truth("corrected");
  m->window = integer("window");
  m->smoothing = number("smoothing");
}

}  // namespace

const char* values_name(DType v) { return name_of(kValues, v); }
DType values_from_name(const std::string& name) { return value_of(kValues, "values", name); }
const char* operand_name(OperandMode m) { return name_of(kOperands, m); }
OperandMode operand_from_name(const std::string& name) { return value_of(kOperands, "operand", name); }
Reduction reduction_from_name(const std::string& name) { return value_of(kReductions, "reduction", name); }

std::string to_json(const RunHeader& h) {
  Json m = Json::object();
  m.set("kind", h.method.kind);
  m.set("trains", h.method.trains);
  m.set("sparsity", h.method.sparsity);
  m.set("noise", noise_name(h.method.noise));
  m.set("queries", h.method.queries);
  m.set("weight_decay", h.method.weight_decay);
  if (h.method.has_index_set()) {
    m.set("fraction", h.method.fraction);
    m.set("index_hash", h.method.index_hash);
  }
  m.set("parts", parts_of(h.method));
  Json masks = Json::array();
  for (size_t i = 0; i < h.masks.size(); ++i) {
    const Mask& k = h.masks[i];
    Json row = Json::array();
    row.push(mask_name(k.kind));
    row.push(bits(k.h));
    row.push(k.keep);
    row.push(h.n_selected[i]);
    masks.push(row);
  }
  Json j = Json::object();
  j.set("numerics_version", h.numerics_version);
  j.set("instruction_set", h.instruction_set);
  j.set("base_fingerprint", h.base_fingerprint);
  Json config = Json::object();
  for (const auto& [key, value] : h.mathematics) config.set(key, value);
  j.set("config", config);
  j.set("delta_hash", h.delta_hash);
  j.set("method", m);
  j.set("values", values_name(h.values));
  j.set("compute", name_of(kComputes, h.compute));
  j.set("operand", operand_name(h.operand));
  j.set("reduction", name_of(kReductions, h.reduction));
  j.set("seed", std::to_string(h.seed));
  j.set("lr_bits", bits(h.lr));
  j.set("eps_bits", bits(h.eps));
  j.set("lr", static_cast<double>(h.lr));  // for a reader's eye; the bits count
  j.set("eps", static_cast<double>(h.eps));
  j.set("masks", masks);
  return j.dump();
}

static RunHeader parsed(const Json& j, const char* where) {
  const std::string what = where;
  const auto str = [&](const char* key) { return j.at(key, what).as_string(what + " " + key); };
  RunHeader h;
  h.instruction_set = str("instruction_set");
  h.base_fingerprint = str("base_fingerprint");
  for (const auto& [key, value] : j.at("config", what).as_object(what))
    h.mathematics[key] = value.as_string(what);
  h.delta_hash = str("delta_hash");
  const Json& m = j.at("method", what);
  h.method.kind = m.at("kind", what).as_string(what);
  h.method.trains = m.at("trains", what).as_string(what);
  h.method.sparsity = m.at("sparsity", what).as_double(what);
  h.method.noise = noise_from_name(m.at("noise", what).as_string(what));
  const int64_t queries = m.at("queries", what).as_int(what);
  check<FormatError>(queries >= 1 && queries <= kMaxQueries, where,
                     std::to_string(queries) + " queries, expected 1 to " + std::to_string(kMaxQueries));
  h.method.queries = static_cast<int>(queries);
  h.method.weight_decay = m.at("weight_decay", what).as_double(what);
  const bool has_index = m.find("index_hash") != nullptr;
  if (has_index) {
    h.method.fraction = m.at("fraction", what).as_double(what);
    h.method.index_hash = m.at("index_hash", what).as_string(what);
  }
  if (const Json* parts = m.find("parts")) {
    read_parts(*parts, where, &h.method);
  } else {
    h.method.index = h.method.index_hash;
    set_parts_of_kind(&h.method);
    h.method.index.clear();
  }
  check<FormatError>(has_index == h.method.has_index_set() &&
                         h.method.index_hash.empty() == (h.method.index_set != IndexKind::file),
                     where,
                     "an index set of kind " + std::string(index_kind_name(h.method.index_set)) +
                         (has_index ? " with" : " without") + " a hash, expected what it was made with");
  check_method(h.method);
  h.values = values_from_name(str("values"));
  h.compute = value_of(kComputes, "compute", str("compute"));
  h.operand = operand_from_name(str("operand"));
  h.reduction = reduction_from_name(str("reduction"));
  const std::string seed = str("seed");
  const auto [stop, error] = std::from_chars(seed.data(), seed.data() + seed.size(), h.seed);
  check<FormatError>(error == std::errc() && stop == seed.data() + seed.size(), where,
                     "seed '" + seed + "', expected a number");
  h.lr = from_bits(j.at("lr_bits", what), what);
  h.eps = from_bits(j.at("eps_bits", what), what);
  // 0: a delta of a run that had not begun.
  check<FormatError>(std::isfinite(h.lr) && h.lr >= 0 && std::isfinite(h.eps) && h.eps >= 0, where,
                     "lr " + std::to_string(h.lr) + " and eps " + std::to_string(h.eps) +
                         ", expected finite numbers not below 0");
  for (const Json& row : j.at("masks", what).as_array(what)) {
    const Json::Array& r = row.as_array(what);
    check<FormatError>(r.size() == 4, "journal header",
                       "a mask of " + std::to_string(r.size()) + " fields, expected 4");
    Mask k;
    k.kind = mask_from_name(r[0].as_string(what));
    k.h = from_bits(r[1], what);
    const int64_t keep = r[2].as_int(what), n_selected = r[3].as_int(what);
    check<FormatError>(
        !std::isnan(k.h) && keep >= 0 && keep <= 65536 && n_selected >= 0 && n_selected <= kMostElements,
        where,
        "a mask with threshold " + std::to_string(k.h) + ", density " + std::to_string(keep) +
            " of 65536 and " + std::to_string(n_selected) + " elements, expected numbers of a mask");
    k.keep = static_cast<uint32_t>(keep);
    h.masks.push_back(k);
    h.n_selected.push_back(n_selected);
  }
  return h;
}

RunHeader run_header_from_json(const std::string& text) {
  constexpr const char* what = "journal header";
  const Json j = Json::parse(text, what);
  const int64_t version = j.at("numerics_version", what).as_int(what);
  check<FormatError>(version == kNumericsVersion, what,
                     "numerics version " + std::to_string(version) + ", this library has " +
                         std::to_string(kNumericsVersion) + ": replaying would give other weights");
  try {
    return parsed(j, what);
  } catch (const ArgumentError& e) {  // a word that none of the tables has
    fail<FormatError>(what, std::string(e.what()) + "; written by another release, or damaged?");
  }
}

std::string support_difference(const RunHeader& a, const RunHeader& b, uint32_t id) {
  const auto seeds = [&] {
    return a.seed == b.seed
               ? ""
               : "seed " + std::to_string(a.seed) + ", it was drawn with " + std::to_string(b.seed);
  };
  if (a.method.kind != b.method.kind) return "method " + a.method.kind + ", it was made by " + b.method.kind;
  if (a.method.lies_beside()) {
    if (a.method.low_rank != b.method.low_rank || a.method.rank != b.method.rank)
      return "rank " + std::to_string(a.method.rank) + ", it has " + std::to_string(b.method.rank);
    if (a.method.refresh != b.method.refresh)
      return "refresh " + std::to_string(a.method.refresh) + ", it has " + std::to_string(b.method.refresh);
    if (a.method.noise != b.method.noise)
      return std::string("noise ") + noise_name(a.method.noise) + ", it has " + noise_name(b.method.noise);
    return seeds();
  }
  if (a.method.has_index_set()) {
    if (a.method.index_set != b.method.index_set)
      return b.method.index_set == IndexKind::file
                 ? "its index set was read from a file of hash " + b.method.index_hash + "; give that file"
                 : std::string("its index set is of kind ") + index_kind_name(b.method.index_set);
    if (a.method.index_hash != b.method.index_hash)
      return "its index set was read from a file of hash " + b.method.index_hash + "; give that file";
    if (!a.method.index_hash.empty()) return "";
    if (a.method.fraction != b.method.fraction)
      return "fraction " + digits(a.method.fraction) + ", it has " + digits(b.method.fraction);
    return a.method.index_set == IndexKind::rows ? "" : seeds();
  }
  const Mask &mine = a.masks[id], &its = b.masks[id];
  if (mine.kind != its.kind || mine.h != its.h || mine.keep != its.keep)
    return "sparsity " + digits(a.method.sparsity) + ", it has " + digits(b.method.sparsity);
  return mine.kind == MaskKind::random ? seeds() : "";
}

std::string difference(const RunHeader& a, const RunHeader& b) {
  std::string out;
  const auto differ = [&](const char* name, const std::string& wanted, const std::string& found) {
    if (out.empty() && wanted != found) out = std::string(name) + " " + wanted + ", the run has " + found;
  };
  differ("model fingerprint", a.base_fingerprint, b.base_fingerprint);
  for (const auto& [key, value] : a.mathematics)
    differ((key + " of config.json").c_str(), value,
           b.mathematics.count(key) ? b.mathematics.at(key) : "nothing");
  differ("method", a.method.kind, b.method.kind);
  differ("trains", a.method.trains, b.method.trains);
  differ("sparsity", digits(a.method.sparsity), digits(b.method.sparsity));
  differ("noise", noise_name(a.method.noise), noise_name(b.method.noise));
  differ("queries", std::to_string(a.method.queries), std::to_string(b.method.queries));
  differ("weight decay", digits(a.method.weight_decay), digits(b.method.weight_decay));
  differ("fraction", digits(a.method.fraction), digits(b.method.fraction));
  differ("index file's hash", a.method.index_hash, b.method.index_hash);
  const Json mine = parts_of(a.method), its = parts_of(b.method);
  for (const auto& [key, value] : mine.as_object("parts"))
    differ(key.c_str(), value.dump(), its.at(key, "parts").dump());
  differ("seed", std::to_string(a.seed), std::to_string(b.seed));
  differ("values", values_name(a.values), values_name(b.values));
  differ("dtype", name_of(kComputes, a.compute), name_of(kComputes, b.compute));
  differ("operand", operand_name(a.operand), operand_name(b.operand));
  differ("reduction", name_of(kReductions, a.reduction), name_of(kReductions, b.reduction));
  differ("starting delta", a.delta_hash.empty() ? "none" : a.delta_hash,
         b.delta_hash.empty() ? "none" : b.delta_hash);
  return out;
}

}  // namespace smezo
