// Power cuts beneath whole runs: at every operation of a workload the power goes, each thing that was queued
// for the device meets its fate (crash_simulator.h), and the run is opened again. Nothing that was promised
// may be missing, and the finished run must be, bit for bit, the one that nothing interrupted.
//
//   crash_test [part of a test's name]
//   SMEZO_CRASH_SEEDS   fates tried at each operation (default 1; 4 make more than 2,000 points)
//   SMEZO_CRASH_EVERY   of so many operations one is cut at (default 1)
#include <cstdlib>
#include <functional>
#include <optional>
#include <random>
#include <set>

#include "base/error.h"
#include "crash_simulator.h"
#include "engine/engine.h"
#include "engine/query_plan.h"
#include "io/safetensors.h"
#include "model/model.h"
#include "store/quantize.h"
#include "test.h"

using namespace smezo;
using namespace smezo_test;

namespace {

const char* const kConfig =
    R"({"model_type":"llama","hidden_size":32,"intermediate_size":48,"num_hidden_layers":2,"num_attention_heads":4,
        "num_key_value_heads":2,"vocab_size":64,"rms_norm_eps":1e-5,"max_position_embeddings":64})";
constexpr uint32_t kSteps = 6;
constexpr int kSyncEvery = 3;

void write_model() {
  make_folders("m");
  std::vector<TensorSpec> specs;
  for (const ParameterSpec& p : parameters_of(parse_config(kConfig)))
    specs.push_back(
        {p.name, "F32", p.rows == 1 ? std::vector<int64_t>{p.cols} : std::vector<int64_t>{p.rows, p.cols}});
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 0.2f);
  write_safetensors("m/model.safetensors", specs, {}, [&](SafetensorsSink& sink) {
    for (size_t i = 0; i < specs.size(); ++i) {
      int64_t n = 1;
      for (const int64_t d : specs[i].shape) n *= d;
      std::vector<float> w(static_cast<size_t>(n));
      for (float& x : w) x = normal(random) + (specs[i].shape.size() == 1 ? 1.0f : 0.0f);
      sink.write(i, w.data(), n * 4);
    }
  });
  write_atomically("m/config.json", kConfig);
}

EngineOptions options_of(const std::string& kind, bool streamed) {
  EngineOptions o;
  o.model_dir = "m";
  o.run_dir = "run";
  o.method.kind = kind;
  set_parts_of_kind(&o.method);
  o.method.sparsity = kind == "sparse-mezo" ? 0.5 : 0;
  if (o.method.has_index_set()) o.method.fraction = 0.1;
  o.seed = 3;
  o.threads = 1;
  if (!streamed) return o;
  o.memory_budget = int64_t{16} << 20;
  o.stream_trained = true;
  o.generation_every = 2;
  o.n_readers = 0;  // what reads ahead would see the power go and not be missed
  return o;
}

Batch batch_of(uint32_t step) {
  Batch b;
  std::mt19937 random(step);
  for (int64_t i = 0; i < 5; ++i) b.tokens.push_back(static_cast<int32_t>(random() % 64));
  b.segments = {{0, 5, -1}};
  b.labels = {{4, static_cast<int32_t>(random() % 64), 0, 0}};
  b.n_examples = 1;
  return b;
}

// What the world was told: survives the cut.
struct Promised {
  uint32_t steps = 0;  // that commit or sync said are on the device
  bool finished = false;
};

std::unique_ptr<Engine> open(const EngineOptions& o) {
  auto e = Engine::open(o);
  if (!e->started()) e->start(0x1p-9f, 0x1p-7f);
  return e;
}

void step(Engine& e) {
  const std::vector<Branch> branches = branches_of(e.header().method, e.eps());
  const ProbeResult p = e.probe(batch_of(e.step() + 1), branches, e.step() + 1);
  const std::vector<double> means = {p.losses[0].mean(), p.losses[1].mean()};
  StepDecision d;
  d.lr = e.lr();
  d.loss_plus = static_cast<float>(means[0]), d.loss_minus = static_cast<float>(means[1]);
  d.loss = (d.loss_plus + d.loss_minus) / 2;
  d.scalars = scalars_of(e.header().method, branches, means);
  e.commit(d);
}

// A workload begins anew or goes on with what is there; `lost` says what is missing of a promise.
struct Workload {
  const char* name;
  std::function<void()> prepare;  // before the first cut
  std::function<void(Promised&)> work;
  std::function<std::string(const Promised&)> lost;
  std::vector<std::string> results;  // files that must be the uninterrupted run's
};

void train(const EngineOptions& o, Promised& promised) {
  auto e = open(o);
  while (e->step() < kSteps) {
    step(*e);
    if (o.sync_every == 1) promised.steps = e->step();
    if (!o.memory_budget && e->step() == 3) e->save_generation();
    if (o.sync_every > 1 && e->step() % 4 == 0) e->sync(), promised.steps = e->step();
  }
  e->save_delta("trained");
  promised.finished = true;
}

std::string steps_lost(const Promised& promised) {
  uint32_t found = 0;
  if (file_exists("run/journal.smz")) {
    try {
      read_journal("run/journal.smz", [&](const Record& r, uint32_t) { found = r.step; });
    } catch (const Error& e) {
      return std::string("the journal cannot be read: ") + e.what();
    }
  }
  return found >= promised.steps ? ""
                                 : std::to_string(promised.steps) + " steps were promised, " +
                                       std::to_string(found) + " are there";
}

std::string folder_lost(const std::string& folder, const Promised& promised) {
  return !promised.finished || folder_exists(folder) ? "" : folder + " was promised, it is not there";
}

// A journal's salt is random, so no other run's fork is like it: it begins as its source does.
std::string fork_lost(const Promised& promised) {
  if (!file_exists("other/journal.smz")) return promised.finished ? "the fork was promised" : "";
  const std::string whole = read_all("run/journal.smz"), fork = read_all("other/journal.smz");
  if (whole.substr(0, fork.size()) != fork || fork.size() == whole.size())
    return "the fork is not a beginning";
  return read_journal("other/journal.smz").n_records == 4 ? "" : "the fork has not 4 records";
}

Workload training(const char* name, const EngineOptions& o) {
  return {name, [] {}, [o](Promised& p) { train(o, p); }, steps_lost, {"trained"}};
}

// A folder that `make` writes from a trained run: there whole or not at all.
Workload writing(const char* name, const std::string& folder, std::vector<std::string> files,
                 std::function<void(Engine&)> make, EngineOptions o) {
  for (std::string& f : files) f = folder + "/" + f;
  return {name,
          [o] {
            Promised p;
            train(o, p);
          },
          [o, folder, make](Promised& p) {
            if (folder_exists(folder)) {
              p.finished = true;
              return;
            }
            make(*open(o));
            p.finished = true;
          },
          [folder](const Promised& p) {
            const std::string steps = steps_lost({kSteps, false});
            return steps.empty() ? folder_lost(folder, p) : steps;
          },
          std::move(files)};
}

std::vector<Workload> workloads() {
  EngineOptions few_syncs = options_of("mezo", false);
  few_syncs.sync_every = kSyncEvery;
  const EngineOptions sparse = options_of("sparse-mezo", false), index = options_of("sensitive", true);
  EngineOptions adam[] = {options_of("mezo", false), options_of("mezo", true)};
  for (EngineOptions& o : adam) o.method.rule = RuleKind::adam;
  EngineOptions low_rank = options_of("mezo", false);
  low_rank.method.low_rank = LowRankKind::uv;
  low_rank.method.rank = low_rank.method.refresh = 2;
  EngineOptions beside = low_rank;
  beside.method.only_reads = true, beside.method.rank_cap = 8;
  return {
      training("resident, a generation on the way", sparse),
      training("moments, a generation on the way", adam[0]),
      training("streamed moments", adam[1]),
      training("low rank on a working copy", low_rank),
      training("low rank beside the base", beside),
      training("resident, a sync every 3 records", few_syncs),
      training("index set over a streamed base", index),
      training("packed generations", options_of("sparse-mezo", true)),
      training("dense generations", options_of("mezo", true)),
      {"delta",
       [sparse] {
         Promised p;
         train(sparse, p);
         remove_file("trained");
       },
       [sparse](Promised& p) {
         open(sparse)->save_delta("trained");
         p.finished = true;
       },
       [](const Promised& p) {
         return !p.finished || file_exists("trained") ? std::string() : "the delta was promised";
       },
       {"trained"}},
      {"fork",
       [sparse] {
         Promised p;
         train(sparse, p);
         make_folders("other");
       },
       [](Promised& p) {
         if (!file_exists("other/journal.smz")) fork_journal("run/journal.smz", "other/journal.smz", 4);
         p.finished = true;
       },
       fork_lost,
       {}},
      writing(
          "merge", "merged", {"model.safetensors", "config.json"},
          [](Engine& e) { e.merge("merged", DType::BF16, kShardBytes); }, sparse),
      writing(
          "export", "adapter", {"adapter_model.safetensors", "adapter_config.json"},
          [](Engine& e) { e.export_shira("adapter"); }, index),
      writing(
          "quantize", "q", {"model.safetensors", "config.json"},
          [](Engine&) {
            ThreadPool pool(1);
            quantize_folder("m", "q", {DType::NF4, 64, false}, kShardBytes, pool, {}, {});
          },
          index),
  };
}

// Runs the workload to its end, with the power going at an operation where that is asked for; true: it went.
bool work(CrashSimulator& disk, const Workload& w, Promised& promised) {
  try {
    w.work(promised);
  } catch (const PowerLoss&) {
  } catch (const IoError&) {
    if (!disk.is_dead()) throw;  // told by another thread than the one that the power went from under
  }
  return disk.is_dead();
}

using Bytes = std::vector<uint8_t>;
std::vector<Bytes> files_of(CrashSimulator& disk, const Workload& w) {
  std::vector<Bytes> out;
  for (const std::string& f : w.results) out.push_back(disk.bytes(f));
  return out;
}

// A journal's salt is random and goes into a delta's header: the values behind it count.
Bytes without_header(const Bytes& file, const std::string& name) {
  if (name != "trained" || file.size() < 8) return file;
  uint64_t n = 0;
  std::memcpy(&n, file.data(), 8);
  if (n > file.size() - 8) return {};
  return {file.begin() + static_cast<int64_t>(8 + n), file.end()};
}

// A file of a result is whole wherever it is there; `all`: each has to be there.
std::string difference(CrashSimulator& disk, const Workload& w, const std::vector<Bytes>& wanted, bool all) {
  for (size_t i = 0; i < wanted.size(); ++i) {
    const std::string& name = w.results[i];
    if (!all && !file_exists(name)) continue;
    if (!file_exists(name)) return name + " is not there";
    if (without_header(disk.bytes(name), name) != without_header(wanted[i], name))
      return name + " is not the uninterrupted run's";
  }
  return "";
}

struct Counts {
  int64_t cuts = 0, broken = 0;
  std::set<uint64_t> distinct;  // (workload, operation, fates)
  std::string first;            // what was wrong
};

void try_cut(const Workload& w, uint64_t seed, Device device, int64_t at, const std::vector<Bytes>& wanted,
             Counts& counts) {
  CrashSimulator disk(seed, device);
  const bool syncs = disk.device().sync_works, folder_syncs = disk.device().sync_folder_works;
  disk.device().sync_works = disk.device().sync_folder_works = true;
  write_model();
  w.prepare();
  disk.device().sync_works = syncs, disk.device().sync_folder_works = folder_syncs;
  Promised promised;
  disk.crash_at(at);
  work(disk, w, promised);  // to its end, if the cut comes after it
  disk.reboot();
  ++counts.cuts;
  counts.distinct.insert((disk.fate() ^ static_cast<uint64_t>(at)) * 0x9E3779B97F4A7C15ull);
  std::string wrong;
  try {
    wrong = w.lost(promised);
    if (wrong.empty()) wrong = difference(disk, w, wanted, promised.finished);
    if (wrong.empty()) {
      Promised again;
      work(disk, w, again);
      wrong = w.lost(again);
      if (wrong.empty()) wrong = difference(disk, w, wanted, true);
    }
  } catch (const Error& e) {
    wrong = e.what();
  }
  if (wrong.empty()) return;
  ++counts.broken;
  if (counts.first.empty())
    counts.first = std::string(w.name) + ", operation " + std::to_string(at) + ", seed " +
                   std::to_string(seed) + ": " + wrong;
}

int number_of(const char* variable) {
  const char* const asked = std::getenv(variable);
  return asked ? std::max(1, std::atoi(asked)) : 1;
}

Counts cut_everywhere(const Workload& w, Device device, int n_seeds) {
  std::vector<Bytes> wanted;
  int64_t n_operations = 0;
  {
    CrashSimulator disk(0);
    write_model();
    w.prepare();
    const int64_t before = disk.n_operations();
    Promised promised;
    work(disk, w, promised);
    n_operations = disk.n_operations() - before;
    wanted = files_of(disk, w);
    CHECK(promised.finished && w.lost(promised).empty());
    for (const auto& f : wanted) CHECK(f.size() > 30);
  }
  Counts counts;
  const int64_t every = number_of("SMEZO_CRASH_EVERY");
  for (int64_t at = 1; at <= n_operations + 1; ++at) {
    if (at <= n_operations && at % every != 0) continue;
    const int n_fates = at > n_operations ? n_seeds + 6 : n_seeds;  // all that is left is what was not synced
    for (int s = 0; s < n_fates; ++s)
      try_cut(w, static_cast<uint64_t>(at * 1000 + s), device, at, wanted, counts);
  }
  return counts;
}

}  // namespace

TEST(power_cuts_lose_nothing_that_was_promised) {
  const int n_seeds = number_of("SMEZO_CRASH_SEEDS");
  size_t distinct = 0;
  int64_t cuts = 0;
  for (const Workload& w : workloads()) {
    const Counts c = cut_everywhere(w, {}, n_seeds);
    std::printf("  %-36s %6ld cuts, %6zu distinct, %ld broken\n", w.name, static_cast<long>(c.cuts),
                c.distinct.size(), static_cast<long>(c.broken));
    if (c.broken > 0) std::printf("    %s\n", c.first.c_str());
    CHECK(c.cuts > 0 && c.broken == 0);
    distinct += c.distinct.size(), cuts += c.cuts;
  }
  std::printf("  %ld cuts, %zu distinct crash points\n", static_cast<long>(cuts), distinct);
}

// The test is worth something only if it sees a missing sync.
TEST(a_sync_that_does_nothing_is_noticed) {
  for (const Workload& w : workloads()) {
    Device no_sync, no_folder_sync;
    no_sync.sync_works = false;
    no_folder_sync.sync_folder_works = false;
    const Counts a = cut_everywhere(w, no_sync, 1), b = cut_everywhere(w, no_folder_sync, 1);
    if (a.broken == 0 || b.broken == 0)
      std::printf("  %s: %ld and %ld broken\n", w.name, static_cast<long>(a.broken),
                  static_cast<long>(b.broken));
    CHECK(a.broken > 0);
    CHECK(b.broken > 0);
  }
}

TEST_MAIN()
