// The engine's insides, shared by the files that define it. Nobody else includes it.
#pragma once
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "engine/engine.h"
#include "engine/opening.h"
#include "engine/pending.h"
#include "engine/record_rules.h"
#include "io/delta.h"
#include "io/file.h"
#include "io/generation.h"
#include "io/journal.h"
#include "model/micro_batch.h"
#include "model/model.h"
#include "store/store.h"

namespace smezo {

struct FoundRecord {
  Record record;
  uint32_t chain;  // of the journal after it
};

// The run that is replayed goes on meanwhile, and its new generation has taken the old one's place.
struct GenerationReplaced : IoError {
  using IoError::IoError;
};

struct Engine::Impl {
  explicit Impl(const EngineOptions& options);

  // resume.cpp. GenerationReplaced.
  void resume(const Opening& opening);
  // Applies records after the newest generation; of streamed state, where many wait, by writing generations.
  void bring_forward(std::deque<FoundRecord> records, uint32_t chain_of_watermark);
  void begin(uint32_t watermark);  // nothing is pending yet
  void apply(const Record& r);     // a step's: to what is in memory anyway, and the rest is pending
  void keep_moments();
  void keep_supports();   // of streamed state
  void tell_originals();  // a note, where a kept file has not all of the index set
  void flush() { pending->flush(); }
  // generation.cpp
  bool streams_state() const;
  bool generation_is_due() const;
  // Writes one; `forward` runs a pass on the way (or does nothing), what it does not visit is visited after
  // it.
  void write_generation_with(const std::function<void()>& forward);
  // Of a resident run. One that cannot be written is a note: the step before it has happened, and the journal
  // has it.
  void write_generation_if_replay_is_long();
  void note_unwritten(const IoError& e);

  int64_t factor_bytes() const;  // that stay between steps
  int64_t other_bytes() const;   // as plan.h
  int64_t fixed_bytes() const;   // what does not depend on the batch
  // How the batch goes through the model. BudgetError.
  MicroBatches make_room(const Batch& batch, const VisitContext& visit, bool want_logits);

  // checkpoint.cpp
  // Has a run that a file describes a mask of its method's kind on every tensor that trains, or on those of
  // them that the file holds? FormatError.
  void check_masks(const RunHeader& h, const std::string& where, const StateReader* file = nullptr) const;
  // Are the file's values for elements that this run trains, in the dtype it keeps? FormatError,
  // ArgumentError.
  void check_state(const StateReader& file, const std::string& where) const;
  void load_delta(const StateReader& delta);  // writes its values into the working copies
  std::vector<bool> taken_whole;  // by tensor id: a delta gave all of it, though a mask says what trains
  // The journal's chain at the watermark. FormatError: the generation is not this journal's.
  void load_generation(uint32_t watermark, uint32_t chain);
  std::string generations() const {
    return join(replays() ? parent_folder(options.journal) : options.run_dir, "generations");
  }
  bool replays() const { return !options.journal.empty(); }
  // merge.cpp: all of a tensor at the journal's tail, in pieces of rows in order. As views: what trains in
  // its own values, the rest as the base stores it, an overlay left out. As fp32: with it.
  void for_rows(uint32_t id, const Store::OnRows& body);
  void for_values(uint32_t id, const std::function<void(const float* values, int64_t row0, int64_t n)>& body);

  // Seconds that applying one record to everything that trains takes on this machine: decides when a
  // generation is due.
  double measure_replay_rate();

  EngineOptions options;
  Isa isa;
  const Kernels& kernels;
  ThreadPool pool;
  std::vector<ParameterSpec> parameters;
  std::unique_ptr<Store> store;
  std::unique_ptr<Model> model;
  RunHeader header;
  Selection selection;
  std::unique_ptr<FactorSource> factors;
  std::unique_ptr<RecordRules> rules;
  std::unique_ptr<Pending> pending;
  std::unique_ptr<Besides> besides;
  std::unique_ptr<RunLock> lock;
  std::string journal_path;
  std::unique_ptr<Journal> journal;
  std::vector<std::string> notes;
  uint32_t n_committed = 0;
  uint32_t newest_generation = 0;  // its watermark
  uint32_t last_attempt = 0;       // to write one
  uint32_t chain = 0;              // of the journal at n_committed; 0: there is none
  double seconds_per_record = 0;
  int n_unsynced = 0;
  bool is_started = false;
  bool mixed = false;             // deltas are in use (Engine::use)
  int64_t forward_bytes = 0;      // of the last probe
  double generation_seconds = 0;  // that writing the last one took beside its pass
  int64_t generation_bytes = 0;   // written so far
};

}  // namespace smezo
