// Trained tensors whose state does not fit in memory: a unit's working copy is made in a buffer each time it
// is visited, from the base and the newest generation, and thrown away, or written to the next generation,
// when it is released.
//
// A generation holds a tensor dense, or packed: the values of its support only, in element order, where the
// base says which elements those are (a mask by magnitude).
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "direction/direction.h"
#include "io/state_file.h"
#include "kernels/kernels.h"
#include "store/ring.h"
#include "store/store.h"
#include "store/transfer.h"

namespace smezo {

// One tensor's place in the newest generation and its support.
struct TrainedTensor {
  bool streamed = false;
  bool packs = false;               // generations hold it packed
  TensorDirection direction;        // packs: whose mask is the support
  std::vector<uint32_t> row_begin;  // packs: [rows + 1], values of the support before each row
  bool in_generation = false;       // else the base is its state
  bool packed_there = false;
  TensorEntry values, tail;    // in the generation's file
  bool moments_there = false;  // else they are the first ones
  TensorEntry moments[2];
};

// A unit between acquire and release.
struct HeldUnit {
  Unit unit;
  WeightView base;         // without data where a dense generation has everything
  uint8_t *values, *tail;  // of the generation; packed: replaced by the new ones in finish_rows
  WeightView state;        // the working copy
  float* moments[2];       // [n_rows][moments_a_row]; used in place
};

// Fills rows [row0, row0 + n) of the working copy, and takes their packed values back out of it. Any thread,
// rows of its own.
void materialize_rows(const TrainedTensor& t, const HeldUnit& held, int64_t row0, int64_t n,
                      const Kernels& kernels);
void pack_rows(const TrainedTensor& t, const HeldUnit& held, int64_t row0, int64_t n, const Kernels& kernels);
// The state of single rows, made of small reads of the base's file and the generation's (nullptr: none yet).
struct StateRows {
  RowViews views;
  int64_t bytes_read = 0;
};
StateRows read_state_rows(const TrainedTensor& t, const BaseTensor& base, const WeightView& shape,
                          const std::vector<int32_t>& rows, const RangeFile& base_file,
                          const RangeFile* generation, const Kernels& kernels);
// Elements of the support in each row of a base view.
void count_support(const TensorDirection& d, const WeightView& base, DType values, int64_t row0, int64_t n,
                   const Kernels& kernels, uint32_t* counts);

}  // namespace smezo
