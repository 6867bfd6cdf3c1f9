// Where weights lie, and how a pass over the model gets at them. Two stores: the resident one maps the base
// and holds everything at hand; the streamed one lives inside a byte budget and reads units ahead of their
// use.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/pages.h"
#include "base/threads.h"
#include "base/view.h"
#include "io/state_file.h"
#include "kernels/overlay.h"
#include "store/base.h"

namespace smezo {

// Rows [row0, row0 + n_rows) of a tensor: what is fetched, leased and caught up.
struct Unit {
  uint32_t tensor_id;
  int64_t row0, n_rows;
  bool operator==(const Unit&) const = default;
};

// Some rows of a tensor, each a view of its own where the tensor is not at hand whole.
class RowViews {
 public:
  RowViews() = default;
  explicit RowViews(const WeightView& whole) : whole_(whole) {}
  RowViews(std::vector<int32_t> rows, std::vector<WeightView> views, std::vector<uint8_t> memory);
  const WeightView& at(int32_t row) const;

 private:
  WeightView whole_;
  std::vector<int32_t> rows_;  // increasing; empty: whole_ has them all
  std::vector<WeightView> views_;
  std::vector<uint8_t> memory_;
};

// What streaming did since the store was opened.
struct Traffic {
  int64_t bytes_read = 0;  // counted when they are used: reading runs ahead
  double stall_s = 0;      // time a pass waited for a unit
};

struct StreamOptions {
  int64_t budget_bytes = 0;
  int64_t ring_bytes = 0;       // 0: a share of the budget (plan.h)
  bool stream_trained = false;  // even if working copies would fit
  int n_readers = 2;            // 0: nothing is read ahead
  // Matrices that do not train are used on a device of so many bytes (a stand-in, store/device.h): in a ring
  // there, as large as the host's, or for good. 0: in host memory.
  int64_t device_bytes = 0;
  bool cached_reads = false;  // through the page cache, which may keep what this process has no room for
};

class Store {
 public:
  // Everything at hand: the base mapped read-only and used in place, working copies of dtype `values` for
  // what trains. FormatError: see Base.
  static std::unique_ptr<Store> open(const std::string& folder, const std::vector<TensorRequest>& requests,
                                     DType values, ThreadPool& pool);
  // The base stays on disk. Vectors and working copies are in memory, matrices that do not train are read by
  // units into a ring each pass; as many as set_resident_bytes allows stay.
  static std::unique_ptr<Store> open_streamed(const std::string& folder,
                                              const std::vector<TensorRequest>& requests, DType values,
                                              const StreamOptions& options, ThreadPool& pool);
  virtual ~Store() = default;

  const TensorRequest& request(uint32_t tensor_id) const { return requests_[tensor_id]; }
  int64_t n_tensors() const { return static_cast<int64_t>(requests_.size()); }
  DType base_dtype() const { return base_.dtype(); }  // the most common one of the base's matrices
  const BaseTensor& base(uint32_t tensor_id) const { return base_.tensor(tensor_id); }
  int64_t scale_bytes() const { return base_.scale_bytes(); }
  std::string fingerprint() const;  // 16 hex digits, see Base::hash
  int64_t working_copy_bytes() const { return working_copy_bytes_; }

  // The whole tensor: the working copy if trained, else the base. ArgumentError when it is not at hand whole.
  virtual WeightView weight(uint32_t tensor_id) = 0;
  // The index set of a tensor and its trained values; nullptr: none. It is then the base that weight, acquire
  // and rows give.
  IndexOverlay* overlay(uint32_t tensor_id) { return overlays_[tensor_id].get(); }
  // Puts one there, its values filled from the base: with the originals of elements that were kept
  // (originals.h), else with what the stored weight decodes to.
  void set_overlay(uint32_t tensor_id, IndexOverlay overlay);
  std::vector<float> overlay_base_values(uint32_t tensor_id);  // that its values began with
  // What an update rule keeps beside a tensor that trains: `count` arrays of n numbers, all `first` at first.
  // BudgetError.
  void keep_moments(uint32_t tensor_id, int64_t n, int count, float first);
  float* moments(uint32_t tensor_id, int k);  // in memory; nullptr: there are none
  // Those of a row of a matrix, also of a unit that is held; of an index set all of them.
  virtual float* moments_at(uint32_t tensor_id, int64_t row, int k);
  int64_t n_moments(uint32_t tensor_id) const { return moments_[tensor_id].n; }
  int64_t moment_bytes() const;
  int64_t overlay_bytes() const;
  bool has_originals() const { return base_.originals() != nullptr; }
  int64_t n_originals() const { return n_originals_; }  // elements of overlays that began with theirs
  // Shape and id without data.
  WeightView shape(uint32_t tensor_id) const;
  // body(unit, view) for every unit of a tensor, as a pass of its own.
  void for_units(uint32_t id, const std::function<void(const Unit&, const WeightView&)>& body);

  // Elements [e0, e0 + n) of a trained tensor as a fresh working copy would hold them (rounded to 24 bits
  // where values are BF16T8), fp32.
  virtual void base_values(uint32_t tensor_id, int64_t e0, int64_t n, float* out) = 0;

  // The most rows of a unit of this tensor, a multiple of unit_step but where the tensor ends; and what the
  // first row of a unit is a multiple of.
  virtual int64_t unit_rows(uint32_t tensor_id) const = 0;
  virtual int64_t unit_step(uint32_t /*tensor_id*/) const { return 1; }
  // Bytes of units that may be held at a time without keeping the next ones from being read.
  virtual int64_t hold_bytes() const = 0;
  virtual int64_t unit_bytes(const Unit& unit) const = 0;
  // Announces what will be acquired, in this order; reading begins. An earlier pass is given up.
  virtual void begin_pass(std::vector<Unit> units) = 0;
  // The next pass is probably the last one again: reading begins. Any other may be begun.
  virtual void expect_same_pass() {}
  // Waits for the next unit of the pass. IoError when it could not be read; the pass is then over. Row
  // numbers of the view are the tensor's.
  virtual WeightView acquire(const Unit& unit) = 0;
  virtual void release(const Unit& unit) = 0;  // in the order acquired
  // Rows by number, increasing; a pass goes on undisturbed.
  virtual RowViews rows(uint32_t tensor_id, const std::vector<int32_t>& rows) = 0;
  // Trained state that does not lie in memory (trained_units.h). acquire gives a writable view whose rows
  // mean nothing before prepare_rows, any thread, has filled them with the state at the generation's
  // watermark; they are thrown away by release.
  virtual bool streams_state(uint32_t /*tensor_id*/) const { return false; }
  virtual void prepare_rows(const Unit&, int64_t /*row0*/, int64_t /*n*/, const Kernels&) {}
  // The same for rows by number: `rows` of what trains, each a writable copy.
  virtual RowViews state_rows(uint32_t /*tensor_id*/, const std::vector<int32_t>& /*rows*/, const Kernels&) {
    return {};
  }
  // Generations: do they hold this tensor packed, and then how many values (0 may be all); where the newest
  // one lies; and `write` is called, by another thread after release, with what the next one holds, after
  // finish_rows was called on all rows; finish_writing waits for that and throws what it threw. Without
  // `write`: gives up what is not written yet.
  virtual bool packs(uint32_t /*tensor_id*/) const { return false; }
  virtual int64_t n_packed(uint32_t /*tensor_id*/) const { return 0; }
  virtual void keep_support(uint32_t /*tensor_id*/, const TensorDirection&, const Kernels&, ThreadPool&) {}
  virtual void use_generation(const StateReader&) {}
  struct UnitState {
    const void* values;
    const int8_t* tail;
    int64_t n;
    const float* moments[2];  // where the tensor has such
    int64_t n_moments;        // numbers of each
  };
  using WriteUnit = std::function<void(uint32_t id, const UnitState&)>;
  virtual void write_units(WriteUnit) {}
  virtual void finish_writing() {}
  virtual void finish_rows(const Unit&, int64_t /*row0*/, int64_t /*n*/, const Kernels&) {}
  // A trained tensor's state in pieces that together are all its rows, in order: `each` on strips of rows in
  // parallel, then body(view, row0, n). Not during a pass.
  using OnRows = std::function<void(const WeightView&, int64_t row0, int64_t n)>;
  void for_state(uint32_t tensor_id, const Kernels& kernels, ThreadPool& pool, const OnRows& each,
                 const OnRows& body);

  // A frozen tensor of which only a few rows were read: its pages may leave this process's memory.
  virtual void rest(uint32_t tensor_id) = 0;
  virtual Traffic traffic() const { return {}; }
  // Bytes of units that may stay in memory from now on; what is above is let go of. Between passes.
  virtual void set_resident_bytes(int64_t /*n_bytes*/) {}
  virtual int64_t resident_bytes() const { return 0; }  // of units that stay, in host memory
  virtual int64_t device_bytes() const { return 0; }    // in use on the device
  virtual int64_t ring_bytes() const { return 0; }
  virtual int64_t row_bytes(uint32_t /*tensor_id*/) const { return 0; }  // that `rows` reads a row into
  virtual int64_t support_bytes() const { return 0; }  // which elements of streamed state train

 protected:
  Store(const std::string& folder, std::vector<TensorRequest> requests, DType values);

  // Rows of the base, each read into memory of its own by `read(first byte in the tensor, bytes, to)`.
  RowViews copy_rows(uint32_t id, const std::vector<int32_t>& rows,
                     const std::function<void(int64_t begin, int64_t n_bytes, void* to)>& read) const;
  // Memory for a copy of a tensor; BudgetError.
  WeightView allocate(uint32_t id, DType dtype);

  std::vector<TensorRequest> requests_;
  Base base_;
  DType values_;
  uint64_t fingerprint_ = 0;
  std::vector<Pages> memory_;  // [n_tensors], of those that have a copy
  int64_t working_copy_bytes_ = 0;

 private:
  int64_t fill_from_base(uint32_t id, IndexOverlay& overlay);  // how many got their originals
  std::vector<std::unique_ptr<IndexOverlay>> overlays_;        // [n_tensors]
  struct Moments {
    int64_t n = 0;
    Pages values[2];
  };
  std::vector<Moments> moments_;  // [n_tensors]
  int64_t n_originals_ = 0;
};

}  // namespace smezo
