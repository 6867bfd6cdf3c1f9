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

constexpr uint32_t kMostAtOnce = 4096;  // records that wait: they hold their scalars, and those of a window

struct Found {
  Record record;
  uint32_t chain;  // of the journal after it
};

// Would commit have taken these records? last: step of the last one.
void check_of_method(const MethodConfig& method, const std::deque<Found>& found, uint32_t last,
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
  std::deque<Found> records;
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
  if (state.n_records == 0) chain = state.tail_checksum;
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
  if (watermark > 0) load_generation(watermark, chain_of_watermark);
  begin(watermark);
  rules->pass(std::max<int64_t>(0, n_before - window), watermark);
  const uint32_t tail = n_committed, chain_of_tail = chain;
  n_committed = watermark, chain = chain_of_watermark;
  const bool writes = journal && streams_state();
  for (uint32_t applied = watermark; !records.empty(); records.pop_front()) {
    const auto& [r, at] = records.front();
    // Streamed state would make the factors of all epochs that wait at its next visit.
    const bool many =
        r.step > applied + kMostAtOnce ||
        (writes && r.step > applied && waited_long_enough(header.method.low_rank_of(), applied + 1, r.step));
    if (many && n_committed > applied) {
      writes ? write_generation_with([] {}) : flush();
      applied = n_committed;
    }
    apply(r);
    if (r.step > watermark) n_committed = r.step, chain = at;
  }
  n_committed = tail, chain = chain_of_tail;
  seconds_per_record = measure_replay_rate();
  is_started = true;
  flush();
}

}  // namespace smezo
