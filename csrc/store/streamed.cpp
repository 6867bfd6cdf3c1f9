// The streamed store: a pass is a list of units; those that do not stay in memory are read ahead into a ring
// (transfer.h). For a cyclic scan keeping the first units that fit is best: whatever was read last is needed
// last.
#include <algorithm>
#include <cstdlib>
#include <map>
#include <numeric>

#include "base/error.h"
#include "base/pages.h"
#include "store/content_hash.h"
#include "store/convert.h"
#include "store/plan.h"
#include "store/transfer.h"

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
        transfer_(paths_of(base_.file()), ring_bytes_for(options, base_, requests_), options.n_readers),
        unit_bytes_(unit_bytes_for(transfer_.ring_bytes())),
        weights_(requests_.size()) {
    check_ring();
    load(pool);
  }

  WeightView weight(uint32_t id) override;
  void base_values(uint32_t id, int64_t e0, int64_t n, float* out) override;
  int64_t unit_rows(uint32_t id) const override;
  int64_t unit_step(uint32_t id) const override {
    return memory_[id] ? 1 : std::lcm(base_.tensor(id).row_multiple(), requests_[id].row_step);
  }
  int64_t hold_bytes() const override { return transfer_.ring_bytes() / 2; }
  int64_t unit_bytes(const Unit& unit) const override {
    return memory_[unit.tensor_id] ? 0 : Transfer::room_for(job_for(unit));
  }
  void begin_pass(std::vector<Unit> units) override;
  WeightView acquire(const Unit& unit) override;
  void release(const Unit& unit) override;
  RowViews rows(uint32_t id, const std::vector<int32_t>& rows) override;
  void rest(uint32_t) override {}
  Traffic traffic() const override {
    return {transfer_.bytes_read() + small_bytes_read_, transfer_.stall_s()};
  }
  void set_resident_bytes(int64_t n_bytes) override;
  int64_t resident_bytes() const override { return kept_bytes_; }
  int64_t ring_bytes() const override { return transfer_.ring_bytes(); }

 private:
  // A unit that stays, by tensor and first row.
  struct Kept {
    Pages memory;
    int64_t n_rows = 0;
    int64_t n_bytes = 0;
    Transfer::Pointers at{};
    bool read = false;
  };
  using Key = std::pair<uint32_t, int64_t>;

  void check_ring() const;
  void load(ThreadPool& pool);
  ReadJob job_for(const Unit& unit) const;
  WeightView view(const Unit& unit, const Transfer::Pointers& at) const {
    return base_.tensor(unit.tensor_id).view(unit.tensor_id, unit.row0, at[0], at[1]);
  }
  ReadPart part(const TensorEntry& t, BaseTensor::Range range, int64_t align) const {
    return {t.shard, t.offset + range.begin, range.n_bytes, align};
  }
  // nullptr: it goes through the ring, also where another cut of the tensor stays.
  Kept* kept(const Unit& u) {
    const auto found = kept_.find({u.tensor_id, u.row0});
    return found != kept_.end() && found->second.n_rows == u.n_rows ? &found->second : nullptr;
  }

  std::map<Key, Kept> kept_;  // outlives the readers that write there
  Transfer transfer_;
  int64_t unit_bytes_;
  std::vector<WeightView> weights_;  // of those in memory_
  std::vector<Unit> pass_;
  size_t next_ = 0;
  int64_t resident_limit_ = 0, kept_bytes_ = 0, small_bytes_read_ = 0;
};

void Streamed::check_ring() const {
  for (uint32_t id = 0; id < requests_.size(); ++id) {
    const TensorRequest& r = requests_[id];
    if (r.rows == 1 || r.trained) continue;
    const int64_t most = most_unit_bytes(base_.tensor(id), unit_rows(id));
    check<BudgetError>(transfer_.ring_bytes() >= 3 * most, "store",
                       "a ring of " + std::to_string(transfer_.ring_bytes()) + " bytes, expected at least " +
                           std::to_string(3 * most) + ": three units of '" + r.name + "'");
  }
}

ReadJob Streamed::job_for(const Unit& u) const {
  const BaseTensor& t = base_.tensor(u.tensor_id);
  ReadJob job;
  job.parts[0] = part(*t.data, t.data_range(u.row0, u.n_rows), t.data_align());
  if (t.absmax != nullptr) job.parts[1] = part(*t.absmax, t.absmax_range(u.row0, u.n_rows), t.absmax_align());
  return job;
}

int64_t Streamed::unit_rows(uint32_t id) const {
  const TensorRequest& r = requests_[id];
  if (memory_[id]) return r.rows;
  const BaseTensor& t = base_.tensor(id);
  const int64_t step = unit_step(id);
  const int64_t row_bytes =
      std::max<int64_t>(1, t.data_range(0, step).n_bytes + t.absmax_range(0, step).n_bytes);
  return std::min(r.rows, std::max<int64_t>(1, unit_bytes_ / row_bytes) * step);
}

void Streamed::load(ThreadPool& pool) {
  for (uint32_t id = 0; id < requests_.size(); ++id) {
    const TensorRequest& r = requests_[id];
    const DType dtype = base_.tensor(id).dtype;
    if (r.trained || (r.rows == 1 && dtype != DType::NF4 && dtype != DType::I8))
      weights_[id] = allocate(id, r.trained ? values_ : dtype);
  }
  std::vector<Block> buffers;
  for (int i = 0; i < pool.size(); ++i) {
    buffers.emplace_back(std::aligned_alloc(UncachedFile::kAlign,
                                            static_cast<size_t>(kHashChunkBytes + 2 * UncachedFile::kAlign)));
    check<BudgetError>(buffers.back() != nullptr, "store", "no memory for a buffer to read through");
  }
  fingerprint_ = base_.hash(
      pool,
      [&](const Base::Chunk& c, int thread) {
        return transfer_.file(c.entry->shard)
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
  std::vector<Unit> units;
  for (uint32_t id = 0; id < requests_.size(); ++id) {
    if (!memory_[id] || base_.tensor(id).dtype != DType::NF4) continue;
    const int64_t step =
        std::max<int64_t>(1, unit_bytes_ / requests_[id].cols) * base_.tensor(id).row_multiple();
    for (int64_t row0 = 0; row0 < requests_[id].rows; row0 += step)
      units.push_back({id, row0, std::min(step, requests_[id].rows - row0)});
  }
  std::vector<ReadJob> jobs;
  for (const Unit& u : units) jobs.push_back(job_for(u));
  transfer_.begin(jobs);
  for (const Unit& u : units) {
    const WeightView from = view(u, transfer_.next());
    pool.run(u.n_rows, [&](int64_t i, int) {
      convert(from, (u.row0 + i) * from.cols, from.cols, weights_[u.tensor_id]);
    });
    transfer_.release_oldest();
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
  ReadJob job = job_for({id, row0, row1 - row0});
  const Block memory(std::aligned_alloc(UncachedFile::kAlign, static_cast<size_t>(Transfer::room_for(job))));
  check<BudgetError>(memory != nullptr, "store", "no memory to read '" + requests_[id].name + "'");
  uint8_t* to = static_cast<uint8_t*>(memory.get());
  Transfer::Pointers at{};
  for (size_t p = 0; p < job.parts.size(); ++p) {
    const ReadPart& r = job.parts[p];
    at[p] = transfer_.file(r.file).read(r.offset, r.n_bytes, to, r.align);
    to += r.n_bytes == 0 ? 0 : UncachedFile::room_for(r.offset, r.n_bytes);
  }
  read_as(t.view(id, row0, at[0], at[1]), e0, n, values_, out);
}

void Streamed::begin_pass(std::vector<Unit> units) {
  transfer_.begin({});  // nobody writes any more to what is let go of here
  std::erase_if(kept_, [&](const auto& k) {
    if (k.second.read) return false;
    kept_bytes_ -= k.second.n_bytes;
    return true;
  });
  pass_ = std::move(units);
  next_ = 0;
  std::vector<ReadJob> jobs;
  for (const Unit& u : pass_) {
    const Key key{u.tensor_id, u.row0};
    if (memory_[u.tensor_id] || kept(u)) continue;
    ReadJob job = job_for(u);
    const int64_t n_bytes = Transfer::room_for(job);
    if (kept_bytes_ + n_bytes <= resident_limit_ && !kept_.count(key)) {
      Kept k;
      k.n_rows = u.n_rows;
      k.memory = Pages(n_bytes);
      k.n_bytes = n_bytes;
      job.to = k.memory.data();
      if (job.to != nullptr) {
        kept_bytes_ += n_bytes;
        kept_.emplace(key, std::move(k));
      }
    }
    jobs.push_back(job);
  }
  transfer_.begin(std::move(jobs));
}

WeightView Streamed::acquire(const Unit& u) {
  const bool announced = next_ < pass_.size() && pass_[next_].tensor_id == u.tensor_id &&
                         pass_[next_].row0 == u.row0 && pass_[next_].n_rows == u.n_rows;
  check<ArgumentError>(announced, "store",
                       "a unit of '" + requests_[u.tensor_id].name + "' was not announced next");
  ++next_;
  if (memory_[u.tensor_id]) return weights_[u.tensor_id];
  Kept* const k = kept(u);
  if (k == nullptr) return view(u, transfer_.next());
  if (!k->read) {
    k->at = transfer_.next();
    k->read = true;
  }
  return view(u, k->at);
}

void Streamed::release(const Unit& u) {
  if (!memory_[u.tensor_id] && !kept(u)) transfer_.release_oldest();
}

void Streamed::set_resident_bytes(int64_t n_bytes) {
  resident_limit_ = n_bytes;
  if (kept_bytes_ <= n_bytes) return;
  transfer_.begin({});
  pass_.clear();
  while (kept_bytes_ > n_bytes) {
    const auto last = std::prev(kept_.end());
    kept_bytes_ -= last->second.n_bytes;
    kept_.erase(last);
  }
}

RowViews Streamed::rows(uint32_t id, const std::vector<int32_t>& rows) {
  if (memory_[id]) return RowViews(weights_[id]);
  const BaseTensor& t = base_.tensor(id);
  check<FormatError>(
      t.dtype != DType::NF4, "store",
      "'" + requests_[id].name + "' is NF4, expected whole rows: only block matrices are quantized");
  const int64_t row_bytes = bytes_of(t.dtype, t.cols), room = (row_bytes + 63) / 64 * 64;
  std::vector<uint8_t> memory(rows.size() * static_cast<size_t>(room) + 64);
  uint8_t* const begin = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64);
  const UncachedFile& file = transfer_.file(t.data->shard);
  const auto offset = [&](int32_t row) { return t.data->offset + row * row_bytes; };
  for (const int32_t r : rows) file.will_need(offset(r), row_bytes);
  std::vector<WeightView> views;
  for (size_t i = 0; i < rows.size(); ++i) {
    uint8_t* const to = begin + static_cast<int64_t>(i) * room;
    file.read_small(offset(rows[i]), row_bytes, to);
    views.push_back(t.view(id, rows[i], to, nullptr));
  }
  small_bytes_read_ += static_cast<int64_t>(rows.size()) * row_bytes;
  return RowViews(rows, std::move(views), std::move(memory));
}

}  // namespace

std::unique_ptr<Store> Store::open_streamed(const std::string& folder,
                                            const std::vector<TensorRequest>& requests, DType values,
                                            const StreamOptions& options, ThreadPool& pool) {
  return std::make_unique<Streamed>(folder, requests, values, options, pool);
}

}  // namespace smezo
