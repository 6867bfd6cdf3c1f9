// The engine: open a base, ask (probe), answer (commit), and be the same model after any crash.
//
// Invariants. Code cites them; those that this library can break alone have a test of their name.
//
// clang-format off
// I1  A unit's weights and rule state are base (+ starting delta) + records up to its watermark, in order.
//     Nothing else writes them.
// I2  A record is appended before it is pending, and synced at once unless sync_every > 1; nothing with
//     watermark w reaches a file before the journal is synced to w. The base is never opened for writing.
// I3  A pending record carries its own lr and rule step: applied later, or elsewhere, it gives the same bits.
// I4  Evaluate and generate see every unit at the journal's tail; save and export write it there.
// I5  A probe changes nothing but to catch a unit up to the journal's tail as it stood when the probe began
//     (I1); perturbation never reaches a stored weight. Every branch's operand is made from the stored weight
//     into scratch, never from another branch's.
// I6  Random bits are addressed: (run seed, step, query, purpose, tensor id, element), never drawn from a
//     stream. See noise/address.h.
// I7  Tied tensors have one id: one direction, one update.
// I8  Every rank applies the same records; the exchanged per-example sums, not local losses, make the record.
// I9  The budget is a ceiling: planned before the first byte is read; an allocation past it is an error that
//     names who asked.
// I10 Trained values keep at least 24 bits: fp32, or bf16 plus an 8-bit tail. See format/split24.h.
// I11 A non-finite loss or scalar makes a skipped step, recorded as such; neither filtered nor hidden.
// I12 An example's loss on a branch depends on weights, example, branch and instruction set only. Per-example
//     losses are added as int64 fixed point (2^-32), so sums over examples, threads and ranks are exact and
//     order-free.
// clang-format on
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/loss.h"
#include "engine/run_header.h"
#include "io/journal.h"
#include "store/new_checkpoint.h"
#include "store/store.h"

namespace smezo {

constexpr uint32_t kAllRecords = UINT32_MAX;

struct EngineOptions {
  std::string model_dir;
  std::string run_dir;  // "": nothing is durable (evaluation, benchmarks)
  MethodConfig method;
  std::string dtype =
      "auto";  // auto | fp32 | bf16: what GEMM inputs are rounded to; auto: fp32 for an fp32 base, else bf16
  std::string values = "auto";      // auto | fp32 | bf16+8 | bf16: working copies; auto: bf16+8
  std::string operand = "nearest";  // nearest | dither | split
  std::string reduction = "example";
  uint64_t seed = 0;
  int threads = 0;     // 0: default_threads()
  int sync_every = 1;  // records a sync; a power cut may lose the last sync_every - 1 of them
  std::string delta;   // starting delta, or ""
  // Bytes the run may hold above what the process had when it was opened; 0: no limit, everything resident.
  int64_t memory_budget = 0;
  // Trained state that does not fit is written as a generation every so many steps; 0: as many as cost least
  // by the measured rates of replaying and writing.
  int generation_every = 0;
  bool stream_trained = false;  // what trains is streamed even if it would fit
  int n_readers = 2;            // threads that read weights ahead; 0: none
  int64_t ring_bytes = 0;       // 0: chosen
  int64_t device_bytes = 0;  // of a stand-in for a device, where matrices that do not train are used; 0: none
  bool cached_reads = false;  // weights are read through the page cache
  // A journal to be the model of instead of a run folder's, read only: with its records up to a step. Nothing
  // can be committed then.
  std::string journal;
  uint32_t replay_to = kAllRecords;
};

// What a probe found out. Branch order is the caller's.
struct ProbeResult {
  std::vector<Branch> branches;
  std::vector<BranchLoss> losses;          // [n_branches]
  std::vector<std::vector<float>> values;  // see ForwardResult
  std::vector<std::pair<std::string, double>> parts;
};

// What a PEFT adapter holds.
struct AdapterInfo {
  int64_t r = 0;         // PEFT's rank: every module has r * (in + out) values
  int64_t n_values = 0;  // that differ from the base
  int64_t n_bytes = 0;   // of all tensors
  std::vector<std::string> modules;
};

// What the caller decided after a probe. A non-finite loss or scalar makes it a skipped step (I11).
struct StepDecision {
  float lr = 0;
  float loss = 0, loss_plus = 0, loss_minus = 0;
  std::vector<float> scalars;
};

class Engine {
 public:
  struct Impl;  // engine_impl.h

  // Opens the base and, when run_dir holds a journal, becomes the model it describes. ArgumentError when the
  // journal is of another base, method, seed or value dtype; FormatError when it is damaged. A run whose
  // state is streamed and whose generation is far behind its journal writes some on the way.
  static std::unique_ptr<Engine> open(const EngineOptions& options);
  ~Engine();

  // lr and eps of the run. Writes the journal's header; nothing can be committed before. ArgumentError: not
  // positive, or already started.
  void start(float lr, float eps);
  // What start takes: 0, or what a second difference needs. ArgumentError.
  float least_eps() const;
  void check_eps(float eps) const;
  bool started() const;
  float lr() const;
  float eps() const;
  uint32_t step() const;  // last committed step; 0: none

  ProbeResult probe(const Batch& batch, const std::vector<Branch>& branches, uint32_t noise_step,
                    bool want_logits = false);
  // The step has happened when this returns. Returns false for a skipped step.
  bool commit(const StepDecision& decision);
  void sync();  // the journal, whatever sync_every says

  void flush();  // every weight at the journal's tail
  void save_delta(const std::string& path);
  void save_generation();
  // The model at the journal's tail as a new Hugging Face folder, every parameter in `dtype` (F32 or BF16);
  // in the memory of a strip. Returns the bytes of all tensors. ArgumentError: the folder is there, the dtype
  // another.
  int64_t merge(const std::string& folder, DType dtype, int64_t shard_bytes, const OnProgress& progress = {});
  // The model becomes base + sum of weight * (delta - base), over (path, weight); none: the base. Nothing can
  // be committed while deltas are in use. ArgumentError: this is a training run, or a delta is of other
  // tensors, elements or values than this engine's method.
  void use(const std::vector<std::pair<std::string, double>>& deltas);
  // What training changed as a new folder with a SHiRA adapter (PEFT): differences to the base, in the memory
  // of one tensor's. ArgumentError: something that SHiRA cannot hold has changed.
  AdapterInfo export_shira(const std::string& folder);
  void close();

  const ModelConfig& model_config() const;
  const RunHeader& header() const;
  const std::vector<ParameterSpec>& parameters() const;
  int threads() const;
  int64_t working_copy_bytes() const;
  int64_t device_bytes() const;  // in use there
  Traffic traffic() const;
  int64_t generation_bytes_written() const;
  // What the store and the last forward hold, by purpose.
  std::vector<std::pair<std::string, int64_t>> bytes_by_purpose() const;
  int64_t n_trained() const;  // elements selected, over all tensors
  const std::vector<std::string>& notes()
      const;  // what a user should be told once (another instruction set, a dropped tail, ...)
  std::vector<float> weights(uint32_t tensor_id);  // at the journal's tail, fp32
  TensorDirection direction(uint32_t tensor_id, uint32_t step, uint32_t query) const;
  // [m, rank] with what lies between the factors, and v^T [rank, n], whose product is a low-rank direction.
  std::pair<std::vector<float>, std::vector<float>> factors(uint32_t tensor_id, uint32_t step,
                                                            uint32_t query) const;
  std::vector<float> coefficients(uint32_t tensor_id) const;
  std::vector<float> moments(uint32_t tensor_id, int k);  // at the journal's tail
  std::vector<bool> resting(uint32_t step) const;
  // cos^2(z, z_eff) with z_eff = (Q(w + eps z) - Q(w - eps z)) / (2 eps) over the trained elements.
  double surviving_perturbation(float eps, uint32_t noise_step);

 private:
  explicit Engine(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace smezo
