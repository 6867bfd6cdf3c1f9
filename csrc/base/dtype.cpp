// The table of stored types: name and bits, one row a type.
#include "base/dtype.h"

#include "base/error.h"

namespace smezo {
namespace {

struct Row {
  DType dtype;
  const char* name;
  int64_t bits;
};
constexpr Row kRows[] = {
    {DType::F32, "F32", 32},       {DType::F16, "F16", 16}, {DType::BF16, "BF16", 16},
    {DType::BF16T8, "BF16T8", 24}, {DType::NF4, "NF4", 4},  {DType::I8, "I8", 8},
};

const Row& row_of(DType d) {
  for (const Row& r : kRows)
    if (r.dtype == d) return r;
  fail<ArgumentError>("dtype", "value " + std::to_string(static_cast<int>(d)) +
                                   " is no stored type, expected one of the table, memory overwritten?");
}

}  // namespace

int64_t dtype_bytes(DType d) {
  const Row& row = row_of(d);
  check<ArgumentError>(row.bits % 8 == 0, "dtype",
                       std::string(row.name) + " has no whole byte an element, expected bytes_of(dtype, n)");
  return row.bits / 8;
}

int64_t bytes_of(DType d, int64_t n) { return (row_of(d).bits * n + 7) / 8; }

bool holds_trained(DType d) { return d == DType::F32 || d == DType::BF16 || d == DType::BF16T8; }

bool keeps_bits(DType from, DType to) { return from == to || (from == DType::BF16 && to == DType::BF16T8); }

const char* dtype_name(DType d) { return row_of(d).name; }

DType dtype_from_name(const std::string& name) {
  std::string known;
  for (const Row& r : kRows) {
    if (name == r.name) return r.dtype;
    known += known.empty() ? r.name : std::string(", ") + r.name;
  }
  fail<FormatError>("dtype", "stored type '" + name + "', expected one of " + known +
                                 ", the checkpoint was written with a type this version does not read");
}

}  // namespace smezo
