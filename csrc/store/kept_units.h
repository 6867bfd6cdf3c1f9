// Units that stay once they were read, in host memory or on a device.
#pragma once
#include <map>
#include <utility>

#include "base/pages.h"
#include "store/device.h"
#include "store/store.h"
#include "store/transfer.h"

namespace smezo {

struct KeptUnit {
  Pages host;
  DeviceMemory there;
  int64_t n_rows = 0, n_bytes = 0;
  Transfer::Pointers at{};
  bool asked = false, read = false;
  uint8_t* memory() const { return there ? there.get() : static_cast<uint8_t*>(host.get()); }
};

class KeptUnits {
 public:
  // device nullptr: in host memory.
  explicit KeptUnits(Device* device) : device_(device) {}

  // nullptr: it does not stay, though another cut of the tensor may.
  KeptUnit* find(const Unit& u);
  // Makes room of n_bytes for a unit, unless that is above the limit or another cut of it stays.
  void add(const Unit& u, int64_t n_bytes);
  void let_go_of_unread();
  int64_t bytes() const { return bytes_; }
  void set_limit(int64_t n_bytes) { limit_ = n_bytes; }
  void shrink_to_limit();  // the last go first

 private:
  Device* device_;
  std::map<std::pair<uint32_t, int64_t>, KeptUnit> units_;  // by tensor and first row
  int64_t bytes_ = 0, limit_ = 0;
};

}  // namespace smezo
