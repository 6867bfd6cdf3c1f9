// The streamed store: a pass is a list of units; those that do not stay in memory are read ahead into a ring
// (transfer.h). For a cyclic scan any units that stay are as good as others, and which ones must not change.
#include <algorithm>
#include <deque>
#include <numeric>

#include "base/background.h"
#include "base/error.h"
#include "base/pages.h"
#include "store/content_hash.h"
#include "store/convert.h"
#include "store/kept_units.h"
#include "store/plan.h"
#include "store/trained_units.h"
#include "store/unit_source.h"

namespace smezo {
namespace {

std::vector<std::string> paths_of(const Safetensors& file) {
  std::vector<std::string> out;
  for (int i = 0; i < file.n_shards(); ++i) out.push_back(file.shard_path(i));
  return out;
}

class Streamed final : public Store {
 public:
  Streamed(const std::string& folder, std::vector<TensorRequest> requests, DType values,
           const StreamOptions& options, ThreadPool& pool)
      : Store(folder, std::move(requests), values),
        device_(options.device_bytes > 0 ? make_fake_device(options.device_bytes) : nullptr),
        kept_(device_.get()),
        source_(paths_of(base_.file()), ring_bytes_for(options, base_, requests_), options.n_readers,
                options.cached_reads ? PageCache::through : PageCache::past),
        unit_bytes_(unit_bytes_for(transfer().ring_bytes())),
        state_ring_(place_trained(options) ? transfer().ring_bytes() : 0),
        weights_(requests_.size()) {
    check_ring();
    load(pool);
    if (device_ == nullptr) return;
    source_.use_device(*device_);
    kept_.set_limit(device_->size_bytes() - device_->used_bytes());
  }

  WeightView weight(uint32_t id) override;
  void base_values(uint32_t id, int64_t e0, int64_t n, float* out) override;
  int64_t unit_rows(uint32_t id) const override;
  int64_t unit_step(uint32_t id) const override {
    return memory_[id] ? 1 : std::lcm(base_.tensor(id).row_multiple(), requests_[id].row_step);
  }
  int64_t hold_bytes() const override { return transfer().ring_bytes() / 2; }
  int64_t unit_bytes(const Unit& unit) const override {
    if (memory_[unit.tensor_id]) return 0;
    return std::max(Transfer::room_for(job_for(unit)),
                    trained_[unit.tensor_id].streamed ? state_room(unit) : 0);
  }
  void begin_pass(std::vector<Unit> units) override;
  void expect_pass(std::vector<Unit> units) override;
  WeightView acquire(const Unit& unit) override;
  void release(const Unit& unit) override;
  RowViews rows(uint32_t id, const std::vector<int32_t>& rows) override;
  void rest(uint32_t) override {}
  Traffic traffic() const override {
    return {transfer().bytes_given() + small_bytes_read_, source_.stall_s()};
  }
  void set_resident_bytes(int64_t n_bytes) override;
  int64_t resident_bytes() const override { return device_ ? 0 : kept_.bytes(); }
  int64_t device_bytes() const override { return device_ ? device_->used_bytes() : 0; }
  int64_t row_bytes(uint32_t id) const override {
    if (trained_[id].streamed) return copy_bytes(requests_[id].cols, values_);
    return memory_[id] ? 0 : single_row_bytes(base_.tensor(id));
  }
  int64_t support_bytes() const override {
    size_t n = 0;
    for (const TrainedTensor& t : trained_) n += t.row_begin.size() * sizeof(uint32_t);
    return static_cast<int64_t>(n);
  }
  int64_t ring_bytes() const override { return transfer().ring_bytes() + state_ring_.size(); }
  bool streams_state(uint32_t id) const override { return trained_[id].streamed; }
  void prepare_rows(const Unit& unit, int64_t row0, int64_t n, const Kernels& kernels) override;
  RowViews state_rows(uint32_t id, const std::vector<int32_t>& rows, const Kernels& kernels) override;
  int64_t n_packed(uint32_t id) const override {
    return trained_[id].packs ? trained_[id].row_begin.back() : 0;
  }
  void keep_support(uint32_t id, const TensorDirection& d, const Kernels& kernels, ThreadPool& pool) override;
  void use_generation(const StateReader& file) override;
  void write_units(WriteUnit write) override;
  void finish_writing() override { writer_.wait_for_all(); }
  void finish_rows(const Unit& unit, int64_t row0, int64_t n, const Kernels& kernels) override;

 private:
  bool place_trained(const StreamOptions& options);
  void check_ring() const;
  int64_t value_bytes() const { return values_ == DType::F32 ? 4 : 2; }
  int64_t state_room(const Unit& u) const;
  WeightView state_view(const Unit& u, uint8_t* memory) const;
  const HeldUnit* held(const Unit& u) const;
  WeightView acquire_state(const Unit& u);
  void load(ThreadPool& pool);
  ReadJob job_for(const Unit& unit) const;
  WeightView view(const Unit& unit, const Transfer::Pointers& at) const {
    return base_.tensor(unit.tensor_id).view(unit.tensor_id, unit.row0, at[0], at[1]);
  }

  Transfer& transfer() { return source_.transfer(); }
  const Transfer& transfer() const { return source_.transfer(); }
  void give_back(bool all);

  std::unique_ptr<Device> device_;  // nullptr: units are used in host memory
  KeptUnits kept_;                  // outlives the readers that write there
  UnitSource source_;
  int64_t unit_bytes_;
  std::vector<TrainedTensor> trained_;  // [n_tensors]
  Ring state_ring_;
  std::deque<HeldUnit> held_;  // of trained_, in the order acquired
  // Released units, oldest first, whose memory is given back when what is written of them has been.
  struct Leaving {
    int64_t job;  // of writer_; 0: nothing is written
    bool has_state;
  };
  std::deque<Leaving> leaving_;
  WriteUnit write_;
  std::vector<WeightView> weights_;  // of those in memory_
  std::vector<Unit> pass_;
  bool is_expected_ = false;  // pass_ has not begun
  size_t next_ = 0;
  int64_t small_bytes_read_ = 0;
  Background writer_;  // first to end: what it writes lies in the rings
};

void Streamed::check_ring() const {
  for (uint32_t id = 0; id < requests_.size(); ++id) {
    const TensorRequest& r = requests_[id];
    if (r.rows == 1 || (r.trained && !trained_[id].streamed)) continue;
    const int64_t rows = unit_rows(id);
    const int64_t most = std::max(most_unit_bytes(base_.tensor(id), rows), unit_bytes({id, 0, rows}));
    check<BudgetError>(transfer().ring_bytes() >= 3 * most, "store",
                       "a ring of " + std::to_string(transfer().ring_bytes()) + " bytes, expected at least " +
                           std::to_string(3 * most) + ": three units of '" + r.name + "'");
  }
}

// Working copies take at most half of the budget; else the state of all matrices that train is streamed.
bool Streamed::place_trained(const StreamOptions& options) {
  trained_.resize(requests_.size());
  if (!streams_trained(options, requests_, values_)) return false;
  bool any = false;
  for (uint32_t id = 0; id < requests_.size(); ++id) {
    trained_[id].streamed = requests_[id].trained && requests_[id].rows > 1;
    any |= trained_[id].streamed;
  }
  return any;
}

ReadJob Streamed::job_for(const Unit& u) const {
  const BaseTensor& t = base_.tensor(u.tensor_id);
  const TrainedTensor& s = trained_[u.tensor_id];
  const bool dense = s.in_generation && !s.packed_there;
  ReadJob job;
  if (!dense || s.packs) {
    job = read_job_for(base_, u);
  }
  if (!s.streamed || (!dense && !s.packs)) return job;
  // Values and tails of the generation; where the new packed ones go even if there are no old ones.
  const bool packed = !dense;
  const size_t row = static_cast<size_t>(u.row0), end = static_cast<size_t>(u.row0 + u.n_rows);
  const int64_t first = packed ? s.row_begin[row] : u.row0 * t.cols;
  const int64_t n = packed ? s.row_begin[end] - s.row_begin[row] : u.n_rows * t.cols;
  const int file = base_.file().n_shards();
  job.parts[2] = {file, s.values.offset + first * value_bytes(), n * value_bytes(), value_bytes(),
                  s.in_generation};
  if (values_ == DType::BF16T8) job.parts[3] = {file, s.tail.offset + first, n, 1, s.in_generation};
  return job;
}

int64_t Streamed::state_room(const Unit& u) const {
  return whole_pages(copy_bytes(u.n_rows * requests_[u.tensor_id].cols, values_));
}

WeightView Streamed::state_view(const Unit& u, uint8_t* memory) const {
  WeightView w = shape(u.tensor_id);
  const int64_t n = u.n_rows * w.cols;
  w.data = memory;
  w.tail = values_ == DType::BF16T8 ? reinterpret_cast<int8_t*>(memory + (n * value_bytes() + 63) / 64 * 64)
                                    : nullptr;
  w.dtype = values_;
  w.first = u.row0 * w.cols;
  w.writable = true;
  return w;
}

int64_t Streamed::unit_rows(uint32_t id) const {
  if (memory_[id]) return requests_[id].rows;
  return streamed_unit_rows(base_.tensor(id), requests_[id], unit_bytes_, values_);
}

void Streamed::keep_support(uint32_t id, const TensorDirection& d, const Kernels& kernels, ThreadPool& pool) {
  TrainedTensor& t = trained_[id];
  // Bits of a random mask cost more than the values they leave out.
  if (!t.streamed || (d.mask.kind != MaskKind::small && d.mask.kind != MaskKind::large)) return;
  const int64_t rows = requests_[id].rows, step = unit_rows(id);
  std::vector<uint32_t> counts(static_cast<size_t>(rows));
  std::vector<Unit> units;
  for (int64_t row0 = 0; row0 < rows; row0 += step) units.push_back({id, row0, std::min(step, rows - row0)});
  begin_pass(units);
  for (const Unit& u : units) {
    acquire(u);
    const WeightView base = held(u)->base;
    pool.run(u.n_rows, [&](int64_t i, int) {
      count_support(d, base, values_, u.row0 + i, 1, kernels, &counts[static_cast<size_t>(u.row0 + i)]);
    });
    release(u);
  }
  t.row_begin.assign(1, 0);
  for (const uint32_t n : counts) t.row_begin.push_back(t.row_begin.back() + n);
  t.direction = d;
  t.packs = true;
}

void Streamed::use_generation(const StateReader& file) {
  transfer().set_file(base_.file().n_shards(), file.path());
  pass_.clear();
  is_expected_ = false;
  for (uint32_t id = 0; id < requests_.size(); ++id) {
    TrainedTensor& t = trained_[id];
    if (!t.streamed) continue;
    const int64_t i = file.find(requests_[id].name);
    check<FormatError>(i >= 0, "generation",
                       file.path() + " has no '" + requests_[id].name + "', expected all that trains");
    const StateTensor& there = file.tensors()[static_cast<size_t>(i)];
    const int64_t n = there.packed ? n_packed(id) : requests_[id].rows * requests_[id].cols;
    check<FormatError>(
        there.dtype == values_ && there.n() == n, "generation",
        file.path() + " has " + std::to_string(there.n()) + " values of '" + there.name + "' as " +
            dtype_name(there.dtype) + ", expected " + std::to_string(n) + " as " + dtype_name(values_) +
            "; another method's, or random masks, which need more memory to start from a delta?");
    t.in_generation = true;
    t.packed_there = there.packed;
    // Dense once (a run that was in memory before), dense for good: its place in the ring cannot be read and
    // packed into at a time.
    if (!there.packed) t.packs = false;
    t.values = file.values_entry(static_cast<size_t>(i));
    t.tail = file.tail_entry(static_cast<size_t>(i));
  }
}

const HeldUnit* Streamed::held(const Unit& u) const {
  for (const HeldUnit& h : held_) {
    if (h.unit.tensor_id == u.tensor_id && h.unit.row0 == u.row0) return &h;
  }
  fail<ArgumentError>("store", "a unit of '" + requests_[u.tensor_id].name + "' is not held");
}

WeightView Streamed::acquire_state(const Unit& u) {
  // Before waiting for what may find no room while units are leaving.
  give_back(!transfer().next_is_there());
  const Transfer::Pointers at = source_.next();
  HeldUnit h{u, view(u, at), at[2], at[3], {}};
  uint8_t* memory = state_ring_.take(state_room(u));
  if (memory == nullptr) {
    give_back(true);
    memory = state_ring_.take(state_room(u));
  }
  check<BudgetError>(memory != nullptr, "store", "more units held than the ring of states has room for");
  h.state = state_view(u, memory);
  held_.push_back(h);
  return h.state;
}

void Streamed::prepare_rows(const Unit& u, int64_t row0, int64_t n, const Kernels& kernels) {
  if (trained_[u.tensor_id].streamed) materialize_rows(trained_[u.tensor_id], *held(u), row0, n, kernels);
}

void Streamed::finish_rows(const Unit& u, int64_t row0, int64_t n, const Kernels& kernels) {
  if (write_ && trained_[u.tensor_id].packs) pack_rows(trained_[u.tensor_id], *held(u), row0, n, kernels);
}

void Streamed::load(ThreadPool& pool) {
  for (uint32_t id = 0; id < requests_.size(); ++id) {
    const TensorRequest& r = requests_[id];
    const DType dtype = base_.tensor(id).dtype;
    if (is_copied(r, dtype, !trained_[id].streamed)) weights_[id] = allocate(id, r.trained ? values_ : dtype);
  }
  std::vector<Pages> buffers;
  for (int i = 0; i < pool.size(); ++i) {
    buffers.push_back(allocate_pages(kHashBufferBytes));
    check<BudgetError>(buffers.back() != nullptr, "store", "no memory for a buffer to read through");
  }
  fingerprint_ = base_.hash(
      pool,
      [&](const Base::Chunk& c, int thread) {
        return transfer()
            .file(c.entry->shard)
            .read(c.entry->offset + c.at, c.n_bytes,
                  static_cast<uint8_t*>(buffers[static_cast<size_t>(thread)].get()));
      },
      [&](const Base::Chunk& c, const uint8_t* bytes) {
        const BaseTensor& t = base_.tensor(c.id);
        if (!memory_[c.id] || t.dtype == DType::NF4) return;
        const int64_t size = dtype_bytes(t.dtype);
        WeightView from = t.view(c.id, 0, bytes, nullptr);
        from.first = c.at / size;
        convert(from, c.at / size, c.n_bytes / size, weights_[c.id]);
      });
  // A chunk of NF4 codes has its scales elsewhere: once more, by units.
  const std::vector<Unit> units = units_to_copy(base_, requests_, unit_bytes_, state_ring_.size() > 0);
  std::vector<ReadJob> jobs;
  for (const Unit& u : units) jobs.push_back(job_for(u));
  transfer().begin(jobs);
  for (const Unit& u : units) {
    const WeightView from = view(u, transfer().next());
    pool.run(u.n_rows, [&](int64_t i, int) {
      convert(from, (u.row0 + i) * from.cols, from.cols, weights_[u.tensor_id]);
    });
    transfer().release_oldest();
  }
}

WeightView Streamed::weight(uint32_t id) {
  check<ArgumentError>(memory_[id] != nullptr, "store",
                       "'" + requests_[id].name + "' is streamed, expected to be asked for by units");
  return weights_[id];
}

void Streamed::base_values(uint32_t id, int64_t e0, int64_t n, float* out) {
  if (n == 0) return;
  const BaseTensor& t = base_.tensor(id);
  const int64_t step = t.row_multiple(), row0 = e0 / t.cols / step * step;
  const int64_t row1 = std::min(t.rows, ((e0 + n + t.cols - 1) / t.cols + step - 1) / step * step);
  const ReadJob job = read_job_for(base_, {id, row0, row1 - row0});
  const Pages memory = allocate_pages(Transfer::room_for(job));
  check<BudgetError>(memory != nullptr, "store", "no memory to read '" + requests_[id].name + "'");
  uint8_t* to = static_cast<uint8_t*>(memory.get());
  Transfer::Pointers at{};
  for (size_t p = 0; p < job.parts.size(); ++p) {
    const ReadPart& r = job.parts[p];
    if (r.n_bytes == 0) continue;
    at[p] = transfer().file(r.file).read(r.offset, r.n_bytes, to, r.align);
    to += RangeFile::room_for(r.offset, r.n_bytes);
  }
  read_as(t.view(id, row0, at[0], at[1]), e0, n, values_, out);
}

void Streamed::expect_pass(std::vector<Unit> units) {
  begin_pass(std::move(units));
  is_expected_ = true;
}

void Streamed::begin_pass(std::vector<Unit> units) {
  const bool runs_already = is_expected_ && units == pass_ && !transfer().has_failed();
  is_expected_ = false;
  if (runs_already) return;
  give_back(true);
  source_.begin({});  // nobody writes any more to what is let go of here
  kept_.let_go_of_unread();
  pass_ = std::move(units);
  next_ = 0;
  held_.clear();
  state_ring_.clear();
  // From the end, where the head is, of which there is more to read than to compute.
  for (auto u = pass_.rbegin(); u != pass_.rend(); ++u) {
    if (memory_[u->tensor_id] || trained_[u->tensor_id].streamed || kept_.find(*u)) continue;
    const ReadJob read = job_for(*u);
    kept_.add(*u, source_.room_for(read));
  }
  std::vector<UploadJob> jobs;
  for (const Unit& u : pass_) {
    if (memory_[u.tensor_id]) continue;
    KeptUnit* const k = kept_.find(u);
    if (k != nullptr && k->asked) continue;
    jobs.push_back({job_for(u), device_ && !trained_[u.tensor_id].streamed, k ? k->memory() : nullptr});
    if (k != nullptr) k->asked = true;
  }
  source_.begin(std::move(jobs));
}

WeightView Streamed::acquire(const Unit& u) {
  const bool announced = next_ < pass_.size() && pass_[next_].tensor_id == u.tensor_id &&
                         pass_[next_].row0 == u.row0 && pass_[next_].n_rows == u.n_rows;
  check<ArgumentError>(announced, "store",
                       "a unit of '" + requests_[u.tensor_id].name + "' was not announced next");
  ++next_;
  if (memory_[u.tensor_id]) return weights_[u.tensor_id];
  if (trained_[u.tensor_id].streamed) return acquire_state(u);
  KeptUnit* const k = kept_.find(u);
  if (k == nullptr || !k->read) give_back(!transfer().next_is_there());
  if (k == nullptr) return view(u, source_.next());
  if (!k->read) {
    k->at = source_.next();
    k->read = true;
  }
  return view(u, k->at);
}

void Streamed::release(const Unit& u) {
  const TrainedTensor& t = trained_[u.tensor_id];
  if (memory_[u.tensor_id] || kept_.find(u)) return;
  int64_t job = 0;
  if (t.streamed) {
    const HeldUnit h = held_.front();
    held_.pop_front();
    if (write_ && t.packs) {
      const size_t row = static_cast<size_t>(u.row0), end = static_cast<size_t>(u.row0 + u.n_rows);
      const int64_t n = t.row_begin[end] - t.row_begin[row];
      job = writer_.run(
          [this, h, n] { write_(h.unit.tensor_id, h.values, reinterpret_cast<int8_t*>(h.tail), n); });
    } else if (write_) {
      job = writer_.run(
          [this, h] { write_(h.unit.tensor_id, h.state.data, h.state.tail, h.unit.n_rows * h.state.cols); });
    }
  }
  leaving_.push_back({job, t.streamed});
  give_back(false);
}

// Rings take back in order. `all`: waits for what is being written.
void Streamed::give_back(bool all) {
  for (; !leaving_.empty(); leaving_.pop_front()) {
    const Leaving& l = leaving_.front();
    if (!writer_.is_over(l.job)) {
      if (!all) return;
      writer_.wait(l.job);
    }
    if (l.has_state) state_ring_.give_back_oldest();
    source_.release_oldest();
  }
}

void Streamed::write_units(WriteUnit write) {
  writer_.drop();
  give_back(false);
  write_ = std::move(write);
}

void Streamed::set_resident_bytes(int64_t n_bytes) {
  if (device_) return;  // they stay there
  kept_.set_limit(n_bytes);
  if (kept_.bytes() <= n_bytes) return;
  give_back(true);
  source_.begin({});
  pass_.clear();
  is_expected_ = false;
  kept_.shrink_to_limit();
}

RowViews Streamed::state_rows(uint32_t id, const std::vector<int32_t>& rows, const Kernels& kernels) {
  const TrainedTensor& t = trained_[id];
  WeightView state = shape(id);
  state.dtype = values_;
  const BaseTensor& base = base_.tensor(id);
  StateRows found =
      read_state_rows(t, base, state, rows, transfer().file(base.data->shard),
                      t.in_generation ? &transfer().file(base_.file().n_shards()) : nullptr, kernels);
  small_bytes_read_ += found.bytes_read;
  return std::move(found.views);
}

RowViews Streamed::rows(uint32_t id, const std::vector<int32_t>& rows) {
  if (memory_[id]) return RowViews(weights_[id]);
  const BaseTensor& t = base_.tensor(id);
  check<FormatError>(
      t.dtype != DType::NF4, "store",
      "'" + requests_[id].name + "' is NF4, expected whole rows: only block matrices are quantized");
  const int64_t row_bytes = bytes_of(t.dtype, t.cols);
  const RangeFile& file = transfer().file(t.data->shard);
  for (const int32_t r : rows) file.will_need(t.data->offset + r * row_bytes, row_bytes);
  small_bytes_read_ += static_cast<int64_t>(rows.size()) * row_bytes;
  RowViews out = copy_rows(
      id, rows, [&](int64_t begin, int64_t n, void* to) { file.read_small(t.data->offset + begin, n, to); });
  file.let_go_of_small(t.data->offset, t.data->n_bytes);
  return out;
}

}  // namespace

std::unique_ptr<Store> Store::open_streamed(const std::string& folder,
                                            const std::vector<TensorRequest>& requests, DType values,
                                            const StreamOptions& options, ThreadPool& pool) {
  return std::make_unique<Streamed>(folder, requests, values, options, pool);
}

}  // namespace smezo
