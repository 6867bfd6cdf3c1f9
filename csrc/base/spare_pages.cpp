#include "base/spare_pages.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace smezo {
namespace {

int64_t size_of(const Pages& p) { return p.get_deleter().n_bytes; }

}  // namespace

Pages SparePages::take(int64_t n_bytes) {
  const auto smallest = [](const Pages& a, const Pages& b) { return size_of(a) < size_of(b); };
  std::sort(spare_.begin(), spare_.end(), smallest);
  const auto fits =
      std::find_if(spare_.begin(), spare_.end(), [&](const Pages& p) { return size_of(p) >= n_bytes; });
  if (fits != spare_.end()) {
    Pages out = std::move(*fits);
    spare_.erase(fits);
    return out;
  }
  // One that is too small makes room for one that is not: there are never more than are in use at a time.
  if (!spare_.empty()) spare_.pop_back();
  Pages out = allocate_pages(n_bytes);
  check<BudgetError>(out != nullptr, "factors", "no memory for the factors of a tensor");
  return out;
}

void SparePages::give_back(Pages pages) {
  if (pages) spare_.push_back(std::move(pages));
}

}  // namespace smezo
