// A pass is a list of units; those that do not stay in memory are read ahead into a ring (transfer.h). For a
// cyclic scan any units that stay are as good as others, and which ones must not change.
#include "store/streamed.h"

#include <algorithm>

#include "base/error.h"
#include "base/pages.h"
#include "store/content_hash.h"
#include "store/convert.h"

namespace smezo {
namespace {

std::vector<std::string> paths_of(const Safetensors& file) {
  std::vector<std::string> out;
  for (int i = 0; i < file.n_shards(); ++i) out.push_back(file.shard_path(i));
  return out;
}

}  // namespace

Streamed::Streamed(const std::string& folder, std::vector<TensorRequest> requests, DType values,
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

ReadJob Streamed::job_for(const Unit& u) const {
  const BaseTensor& t = base_.tensor(u.tensor_id);
  const TrainedTensor& s = trained_[u.tensor_id];
  const bool dense = s.in_generation && !s.packed_there;
  ReadJob job;
  if (!dense || s.packs) {
    job = read_job_for(base_, u);
  }
  const TensorRequest& r = requests_[u.tensor_id];
  const int file = base_.file().n_shards();
  for (int k = 0; s.streamed && k < r.n_moments; ++k)
    job.parts[static_cast<size_t>(4 + k)] = {file, s.moments[k].offset + r.moment_bytes(u.row0),
                                             r.moment_bytes(u.n_rows), sizeof(float), s.moments_there};
  if (!s.streamed || (!dense && !s.packs)) return job;
  // Values and tails of the generation; where the new packed ones go even if there are no old ones.
  const bool packed = !dense;
  const size_t row = static_cast<size_t>(u.row0), end = static_cast<size_t>(u.row0 + u.n_rows);
  const int64_t first = packed ? s.row_begin[row] : u.row0 * t.cols;
  const int64_t n = packed ? s.row_begin[end] - s.row_begin[row] : u.n_rows * t.cols;
  job.parts[2] = {file, s.values.offset + first * value_bytes(), n * value_bytes(),
                  static_cast<int32_t>(value_bytes()), s.in_generation};
  if (values_ == DType::BF16T8) job.parts[3] = {file, s.tail.offset + first, n, 1, s.in_generation};
  return job;
}

int64_t Streamed::unit_rows(uint32_t id) const {
  if (memory_[id]) return requests_[id].rows;
  return streamed_unit_rows(base_.tensor(id), requests_[id], unit_bytes_, values_);
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

void Streamed::expect_same_pass() {
  std::vector<Unit> units = std::move(pass_);
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
  std::vector<ReadJob> jobs;
  jobs.reserve(pass_.size());  // with small rings there are thousands
  for (const Unit& u : pass_) {
    if (memory_[u.tensor_id]) continue;
    KeptUnit* const k = kept_.find(u);
    if (k != nullptr && k->asked) continue;
    jobs.push_back(job_for(u));
    jobs.back().to_device = device_ && !trained_[u.tensor_id].streamed;
    if (k == nullptr) continue;
    jobs.back().to = k->memory();
    k->asked = true;
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
    const int64_t n_moments = u.n_rows * requests_[u.tensor_id].moments_a_row;
    UnitState state{
        h.state.data, h.state.tail, u.n_rows * h.state.cols, {h.moments[0], h.moments[1]}, n_moments};
    if (t.packs) {
      const size_t row = static_cast<size_t>(u.row0), end = static_cast<size_t>(u.row0 + u.n_rows);
      state.values = h.values, state.tail = reinterpret_cast<int8_t*>(h.tail);
      state.n = t.row_begin[end] - t.row_begin[row];
    }
    if (write_ && (state.n > 0 || n_moments > 0))
      job = writer_.run([this, id = u.tensor_id, state] { write_(id, state); });
  }
  leaving_.push_back({job, t.streamed});
  give_back(false);
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

std::unique_ptr<Store> Store::open_streamed(const std::string& folder,
                                            const std::vector<TensorRequest>& requests, DType values,
                                            const StreamOptions& options, ThreadPool& pool) {
  return std::make_unique<Streamed>(folder, requests, values, options, pool);
}

}  // namespace smezo
