// The table of stored types: name and bytes, one row a type.
#include "base/dtype.h"

#include "base/error.h"

namespace smezo {
namespace {

struct Row {
  DType dtype;
  const char* name;
  int64_t bytes;
};
constexpr Row kRows[] = {
    {DType::F32, "F32", 4},
    {DType::F16, "F16", 2},
    {DType::BF16, "BF16", 2},
    {DType::BF16T8, "BF16T8", 3},
};

const Row& row_of(DType d) {
  for (const Row& r : kRows)
    if (r.dtype == d) return r;
  fail<ArgumentError>("dtype", "value " + std::to_string(static_cast<int>(d)) +
                                   " is no stored type, expected one of the table, memory overwritten?");
}

}  // namespace

int64_t dtype_bytes(DType d) { return row_of(d).bytes; }

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
