#include "store/kept_units.h"

namespace smezo {

KeptUnit* KeptUnits::find(const Unit& u) {
  const auto found = units_.find({u.tensor_id, u.row0});
  return found != units_.end() && found->second.n_rows == u.n_rows ? &found->second : nullptr;
}

void KeptUnits::add(const Unit& u, int64_t n_bytes) {
  if (bytes_ + n_bytes > limit_ || units_.count({u.tensor_id, u.row0})) return;
  KeptUnit k;
  k.n_rows = u.n_rows;
  k.n_bytes = n_bytes;
  if (device_ != nullptr) {
    k.there = allocate_on(*device_, n_bytes);
  } else {
    k.host = allocate_pages(n_bytes);
  }
  if (k.memory() == nullptr) return;
  bytes_ += n_bytes;
  units_.emplace(std::pair{u.tensor_id, u.row0}, std::move(k));
}

void KeptUnits::let_go_of_unread() {
  std::erase_if(units_, [&](const auto& k) {
    if (k.second.read) return false;
    bytes_ -= k.second.n_bytes;
    return true;
  });
}

void KeptUnits::shrink_to_limit() {
  while (bytes_ > limit_) {
    const auto last = std::prev(units_.end());
    bytes_ -= last->second.n_bytes;
    units_.erase(last);
  }
}

}  // namespace smezo
