// Pages that are wanted again soon: another page fault for each would cost more than what is put into them.
#pragma once
#include <cstdint>
#include <vector>

#include "base/pages.h"

namespace smezo {

class SparePages {
 public:
  // At least n_bytes, of any content. BudgetError when the system has none. One thread at a time.
  Pages take(int64_t n_bytes);
  void give_back(Pages pages);

 private:
  std::vector<Pages> spare_;
};

}  // namespace smezo
