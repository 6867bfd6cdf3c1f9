// Opening a run that has a journal: its records are checked, what it was made by is compared with what is
// asked for, and what the newest generation does not hold is applied.
#include <algorithm>
#include <cmath>
#include <deque>
#include <optional>

#include "base/error.h"
#include "engine/engine_impl.h"
#include "engine/generation_interval.h"

namespace smezo {

namespace {

// last: step of the record before.
void check_record(const Record& r, uint32_t last, const std::string& path) {
  check<FormatError>(r.kind == RecordKind::step || r.kind == RecordKind::skipped, "journal",
                     path + ": a record of kind " + std::to_string(static_cast<int>(r.kind)) +
                         ", expected a step; written by a newer release?");
  if (r.step != last + 1)
    fail<FormatError>("journal", path + ": a record of step " + std::to_string(r.step) + " after " +
                                     std::to_string(last) +
                                     ", expected one a step; put together by another program?");
  bool finite = std::isfinite(r.lr) && std::isfinite(r.decay);
  for (const float g : r.scalars) finite &= std::isfinite(g);
  if (!finite && r.kind == RecordKind::step)
    fail<FormatError>("journal",
                      path + ": step " + std::to_string(r.step) +
                          " has a number that is not finite, expected it recorded as skipped (I11)");
}

constexpr int kMostAtOnce = 4096;  // records that wait, where each is little but its scalars

// Would commit have taken these records? last: step of the last one.
void check_of_method(const MethodConfig& method, const std::deque<FoundRecord>& found, uint32_t last,
                     const std::string& path) {
  for (const auto& [r, chain] : found)
    if (static_cast<int>(r.scalars.size()) != method.n_scalars())
      fail<FormatError>("journal", path + ": step " + std::to_string(r.step) + " has " +
                                       std::to_string(r.scalars.size()) + " scalars, expected " +
                                       std::to_string(method.n_scalars()) + ", one a query");
  // Applying it would take memory without end.
  const int64_t rank = (epoch_of(method.low_rank_of(), last) + int64_t{1}) * method.rank;
  check<FormatError>(!method.only_reads || rank <= method.most_rank(), "journal",
                     path + ": step " + std::to_string(last) + " makes rank " + std::to_string(rank) +
                         " beside a base that is only read, expected at most rank_cap " +
                         std::to_string(method.most_rank()) + "; put together by another program?");
}

}  // namespace

// As few records wait together as memory is planned for: they hold their scalars, those of a window, and the
// factors of their epochs.
void Engine::Impl::bring_forward(std::deque<FoundRecord> records, uint32_t chain_of_watermark) {
  const uint32_t watermark = newest_generation, tail = n_committed, chain_of_tail = chain;
  n_committed = watermark, chain = chain_of_watermark;
  const LowRank d = header.method.low_rank_of();
  bool writes = journal && streams_state();
  const int64_t most = writes && d ? most_waiting(d, options.generation_every)
                                   : std::max(kMostWaiting, kMostAtOnce / (1 + header.method.window));
  for (uint32_t applied = watermark; !records.empty(); records.pop_front()) {
    const auto& [r, at] = records.front();
    const bool wait_no_longer =
        r.step > applied + most || (writes && r.step > applied && waited_long_enough(d, applied + 1, r.step));
    if (wait_no_longer && n_committed > applied) {
      applied = n_committed;
      try {
        writes ? write_generation_with([] {}) : flush();
      } catch (const IoError& e) {  // the journal has all of it
        writes = false;
        note_unwritten(e);
      }
    }
    apply(r);
    if (r.step > watermark) n_committed = r.step, chain = at;
  }
  n_committed = tail, chain = chain_of_tail;
  generation_seconds = 0;  // what was written took no probe's pass along
}

void Engine::Impl::resume(const Opening& opening) {
  const std::string& path = replays() ? options.journal : journal_path;
  // A later one than what is replayed is of no use.
  const std::vector<uint32_t> newest_first = list_generations(generations());
  const auto usable = std::find_if(newest_first.begin(), newest_first.end(),
                                   [&](uint32_t w) { return w <= options.replay_to; });
  const uint32_t watermark = usable == newest_first.end() ? 0 : *usable;
  const bool looks_back_to_first = options.method.low_rank != LowRankKind::none;
  const int64_t window = options.method.window;
  uint32_t chain_of_watermark = 0, last = 0;
  std::deque<FoundRecord> records;
  int64_t n_before = 0;
  const auto on_record = [&](const Record& r, uint32_t at) {
    check_record(r, last, path);
    last = r.step;
    if (r.step > options.replay_to) return;
    n_committed = r.step;
    chain = at;
    if (r.step == watermark) chain_of_watermark = at;
    if (r.kind != RecordKind::step) return;
    records.push_back({r, at});
    if (r.step > watermark || looks_back_to_first) return;
    if (++n_before > window) records.pop_front();  // of what the generation holds
  };
  JournalState state;
  if (replays()) {
    state = read_journal(path, on_record);
    check<ArgumentError>(options.replay_to == kAllRecords || options.replay_to == n_committed, "replay",
                         "step " + std::to_string(options.replay_to) + ", expected one of the " +
                             std::to_string(n_committed) + " that " + path + " holds");
  } else {
    journal = std::make_unique<Journal>(Journal::open(path, on_record));
    state = journal->state();
  }
  if (n_committed == 0) chain = state.header_checksum;
  const RunHeader found = named(path, [&] { return run_header_from_json(state.header_json); });
  check_of_method(found.method, records, last, path);
  std::optional<StateReader> delta;
  if (!options.delta.empty()) {
    delta = open_delta(options.delta, header.base_fingerprint);
    header.delta_hash = delta->identity();
  }
  const std::string differs = difference(header, found);
  check<ArgumentError>(
      differs.empty(), "run folder",
      path + " is of another run: " + differs + "; continue with the same settings or name a new run folder");
  for (size_t id = 0; id < parameters.size(); ++id)
    selection.tensors.push_back(tensor_method(found.method, opening.trained[id], opening.layers[id]));
  check_masks(found, path);
  if (found.instruction_set != header.instruction_set && !replays()) {
    notes.push_back("this run was made on " + found.instruction_set + " and continues on " +
                    header.instruction_set +
                    ": committed steps replay bit for bit, new ones may differ in the last bits");
  }
  if (state.dropped_bytes > 0) {
    notes.push_back("dropped " + std::to_string(state.dropped_bytes) +
                    " bytes of an unfinished record at the end of the journal");
  }
  header = found;
  for (size_t id = 0; id < parameters.size(); ++id) selection.tensors[id].mask = header.masks[id];
  selection.n_selected = header.n_selected;
  keep_supports();
  keep_moments();
  besides = std::make_unique<Besides>(selection.tensors, parameters, *factors, header.seed);
  if (delta) load_delta(*delta);
  if (watermark > 0) {
    try {
      load_generation(watermark, chain_of_watermark);
    } catch (const IoError& e) {
      if (replays() && !file_exists(generation_path(generations(), watermark)))
        throw GenerationReplaced(e.what());
      throw;
    }
  }
  begin(watermark);
  rules->pass(std::max<int64_t>(0, n_before - window), watermark);
  bring_forward(std::move(records), chain_of_watermark);
  seconds_per_record = measure_replay_rate();
  is_started = true;
  flush();
}

}  // namespace smezo
