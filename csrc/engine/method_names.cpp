// The words for a method's parts.
#include "engine/method.h"
#include "engine/names.h"

namespace smezo {
namespace {

constexpr Named<NoiseKind> kNoises[] = {{"gaussian", NoiseKind::gaussian},
                                        {"gaussian8", NoiseKind::gaussian8},
                                        {"rademacher", NoiseKind::rademacher}};
constexpr Named<MaskKind> kMasks[] = {{"all", MaskKind::all},
                                      {"small", MaskKind::small},
                                      {"large", MaskKind::large},
                                      {"random", MaskKind::random}};
constexpr Named<QueryPlan> kPlans[] = {
    {"two-sided", QueryPlan::two_sided}, {"one-sided", QueryPlan::one_sided}, {"curved", QueryPlan::curved}};
constexpr Named<Estimator> kEstimators[] = {
    {"difference", Estimator::difference}, {"deviation", Estimator::deviation}, {"sign", Estimator::sign}};
constexpr Named<IndexKind> kIndexKinds[] = {{"none", IndexKind::none},
                                            {"random", IndexKind::random},
                                            {"rows", IndexKind::rows},
                                            {"whole-rows", IndexKind::whole_rows},
                                            {"file", IndexKind::file}};
constexpr Named<LowRankKind> kLowRanks[] = {{"none", LowRankKind::none},
                                            {"uv", LowRankKind::uv},
                                            {"uzv", LowRankKind::uzv},
                                            {"utv", LowRankKind::utv}};
constexpr Named<RuleKind> kRules[] = {{"sgd", RuleKind::sgd},
                                      {"momentum", RuleKind::momentum},
                                      {"adam", RuleKind::adam},
                                      {"sign", RuleKind::sign},
                                      {"hizoo", RuleKind::hizoo}};

}  // namespace

NoiseKind noise_from_name(const std::string& name) { return value_of(kNoises, "noise", name); }
const char* noise_name(NoiseKind kind) { return name_of(kNoises, kind); }
MaskKind mask_from_name(const std::string& name) { return value_of(kMasks, "mask", name); }
const char* mask_name(MaskKind kind) { return name_of(kMasks, kind); }
QueryPlan plan_from_name(const std::string& name) { return value_of(kPlans, "plan", name); }
const char* plan_name(QueryPlan plan) { return name_of(kPlans, plan); }
Estimator estimator_from_name(const std::string& name) { return value_of(kEstimators, "estimator", name); }
const char* estimator_name(Estimator e) { return name_of(kEstimators, e); }
IndexKind index_kind_from_name(const std::string& name) { return value_of(kIndexKinds, "index_set", name); }
const char* index_kind_name(IndexKind kind) { return name_of(kIndexKinds, kind); }
LowRankKind low_rank_from_name(const std::string& name) { return value_of(kLowRanks, "low_rank", name); }
const char* low_rank_name(LowRankKind kind) { return name_of(kLowRanks, kind); }
RuleKind rule_from_name(const std::string& name) { return value_of(kRules, "rule", name); }
const char* rule_name(RuleKind kind) { return name_of(kRules, kind); }

void set_parts_of_kind(MethodConfig* m) {
  constexpr Named<MaskKind> rows[] = {{"mezo", MaskKind::all},
                                      {"random-mask", MaskKind::random},
                                      {"largest-mask", MaskKind::large},
                                      {"sparse-mezo", MaskKind::small}};
  if (m->kind == "sensitive") {
    m->index_set = m->index.empty() ? IndexKind::random : IndexKind::file;
  } else {
    m->mask = value_of(rows, "method", m->kind);
  }
}

}  // namespace smezo
