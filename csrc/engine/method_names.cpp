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

const char* word(NoiseKind x) { return name_of(kNoises, x); }
const char* word(MaskKind x) { return name_of(kMasks, x); }
const char* word(IndexKind x) { return name_of(kIndexKinds, x); }
const char* word(LowRankKind x) { return name_of(kLowRanks, x); }
const char* word(QueryPlan x) { return name_of(kPlans, x); }
const char* word(Estimator x) { return name_of(kEstimators, x); }
const char* word(RuleKind x) { return name_of(kRules, x); }
void read_word(const std::string& word, NoiseKind* to) { *to = value_of(kNoises, "noise", word); }
void read_word(const std::string& word, MaskKind* to) { *to = value_of(kMasks, "mask", word); }
void read_word(const std::string& word, IndexKind* to) { *to = value_of(kIndexKinds, "index_set", word); }
void read_word(const std::string& word, LowRankKind* to) { *to = value_of(kLowRanks, "low_rank", word); }
void read_word(const std::string& word, QueryPlan* to) { *to = value_of(kPlans, "plan", word); }
void read_word(const std::string& word, Estimator* to) { *to = value_of(kEstimators, "estimator", word); }
void read_word(const std::string& word, RuleKind* to) { *to = value_of(kRules, "rule", word); }

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
