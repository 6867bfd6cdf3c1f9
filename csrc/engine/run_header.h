// Everything a journal's header says about a run: with the base it is enough to rebuild the model from the
// records.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "engine/method.h"
#include "model/batch.h"

namespace smezo {

// Raised whenever replaying an old journal with this code would give other bits.
constexpr int kNumericsVersion = 1;

struct RunHeader {
  int numerics_version = kNumericsVersion;
  std::string instruction_set;  // numerics_name(): continuing on another one is not bit-exact, replay is
  std::string base_fingerprint;
  std::map<std::string, std::string> mathematics;  // of config.json, which the fingerprint does not cover
  std::string delta_hash;                          // of the starting delta's description and content, or ""
  MethodConfig method;
  DType values = DType::BF16T8;
  Compute compute = Compute::bf16;
  OperandMode operand = OperandMode::nearest;
  Reduction reduction = Reduction::example;
  uint64_t seed = 0;
  float lr = 0;  // a record carries its own; this is the schedule's peak
  float eps = 0;
  std::vector<int64_t>
      n_selected;  // [n_tensors]; elements a mask selects at the start (expected number for a random one)
  std::vector<Mask> masks;  // [n_tensors]; thresholds and densities computed from the base at the start
};

std::string to_json(const RunHeader& h);
RunHeader run_header_from_json(const std::string& text);  // FormatError: damaged, or another numerics version

// The first thing by which two headers describe different runs, as "seed 1, the run has 0"; "" when they may
// continue each other. lr, eps, masks and instruction set are not compared.
std::string difference(const RunHeader& wanted, const RunHeader& in_journal);

// Why values that `in_file` holds of a tensor's support are not those of this run's support; "" when they
// are.
std::string support_difference(const RunHeader& run, const RunHeader& in_file, uint32_t tensor_id);

const char* values_name(DType values);  // fp32 | bf16+8 | bf16
DType values_from_name(const std::string& name);
OperandMode operand_from_name(const std::string& name);
const char* operand_name(OperandMode m);
Reduction reduction_from_name(const std::string& name);

}  // namespace smezo
