#include "engine/run_header.h"

#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

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

template <class T>
Json json_of(const T& field) {
  if constexpr (std::is_enum_v<T>) {
    return word(field);
  } else {
    return field;
  }
}

void read_field(const Json& v, const std::string& what, std::string* to) { *to = v.as_string(what); }
void read_field(const Json& v, const std::string& what, double* to) { *to = v.as_double(what); }
void read_field(const Json& v, const std::string& what, bool* to) { *to = v.as_bool(what); }
void read_field(const Json& v, const std::string& what, int* to) {
  constexpr int kMost = std::numeric_limits<int>::max();
  const int64_t n = v.as_int(what);
  check<FormatError>(
      n >= 0 && n <= kMost, what.c_str(),
      std::to_string(n) + ", expected a whole number of at most " + std::to_string(kMost) + ", not below 0");
  *to = static_cast<int>(n);
}
template <class Enum>
void read_field(const Json& v, const std::string& what, Enum* to) {
  read_word(v.as_string(what), to);
}

Json fields_of(const MethodConfig& m) {
  Json f = Json::object();
  visit_fields(m, [&](const char* name, const auto& field) { f.set(name, json_of(field)); });
  return f;
}
// What the first headers did not have.
Json parts_of(const MethodConfig& m) {
  Json p = Json::object();
  visit_parts(m, [&](const char* name, const auto& field) { p.set(name, json_of(field)); });
  return p;
}

}  // namespace

const char* values_name(DType v) { return name_of(kValues, v); }
DType values_from_name(const std::string& name) { return value_of(kValues, "values", name); }
const char* operand_name(OperandMode m) { return name_of(kOperands, m); }
OperandMode operand_from_name(const std::string& name) { return value_of(kOperands, "operand", name); }
Reduction reduction_from_name(const std::string& name) { return value_of(kReductions, "reduction", name); }

std::string to_json(const RunHeader& h) {
  Json m = fields_of(h.method);
  if (h.method.has_index_set()) {
    m.set("fraction", h.method.fraction);
    m.set("index_hash", h.method.index_hash);
  }
  m.set("parts", parts_of(h.method));
  Json masks = Json::array();
  for (size_t i = 0; i < h.masks.size(); ++i) {
    const Mask& k = h.masks[i];
    Json row = Json::array();
    row.push(word(k.kind));
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
  const auto read_from = [&](const Json& from, bool may_lack) {
    return [&, may_lack](const char* name, auto& field) {
      if (may_lack && !from.find(name)) return;  // a part that its release did not have
      read_field(from.at(name, what), what + " " + name, &field);
    };
  };
  visit_fields(h.method, read_from(m, false));
  const bool has_index = m.find("index_hash") != nullptr;
  if (has_index) {
    h.method.fraction = m.at("fraction", what).as_double(what);
    h.method.index_hash = m.at("index_hash", what).as_string(what);
  }
  if (const Json* parts = m.find("parts")) {
    visit_parts(h.method, read_from(*parts, true));
  } else {
    h.method.index = h.method.index_hash;
    set_parts_of_kind(&h.method);
    h.method.index.clear();
  }
  check<FormatError>(has_index == h.method.has_index_set() &&
                         h.method.index_hash.empty() == (h.method.index_set != IndexKind::file),
                     where,
                     "an index set of kind " + std::string(word(h.method.index_set)) +
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
  check<FormatError>(
      std::isfinite(h.lr) && h.lr >= 0 && std::isfinite(h.eps) && h.eps >= 0, where,
      "lr " + text(h.lr) + " and eps " + text(h.eps) + ", expected finite numbers not below 0");
  for (const Json& row : j.at("masks", what).as_array(what)) {
    const Json::Array& r = row.as_array(what);
    check<FormatError>(r.size() == 4, "journal header",
                       "a mask of " + std::to_string(r.size()) + " fields, expected 4");
    Mask k;
    read_word(r[0].as_string(what), &k.kind);
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
      return std::string("noise ") + word(a.method.noise) + ", it has " + word(b.method.noise);
    return seeds();
  }
  if (a.method.has_index_set()) {
    if (a.method.index_set != b.method.index_set)
      return b.method.index_set == IndexKind::file
                 ? "its index set was read from a file of hash " + b.method.index_hash + "; give that file"
                 : std::string("its index set is of kind ") + word(b.method.index_set);
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
  const auto differ_in = [&](const Json& mine, const Json& its) {
    for (const auto& [key, value] : mine.as_object("method")) {
      const Json& other = its.at(key, "method");
      differ(key.c_str(), value.is_string() ? value.as_string("") : value.dump(),
             other.is_string() ? other.as_string("") : other.dump());
    }
  };
  differ_in(fields_of(a.method), fields_of(b.method));
  differ("fraction", digits(a.method.fraction), digits(b.method.fraction));
  differ("index file's hash", a.method.index_hash, b.method.index_hash);
  differ_in(parts_of(a.method), parts_of(b.method));
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
