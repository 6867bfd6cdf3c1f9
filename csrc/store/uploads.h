// From the disk through the ring in host memory to a device: read ahead, copied ahead, given out in order.
// Has the face of Transfer.
#pragma once
#include <vector>

#include "store/device.h"
#include "store/ring.h"
#include "store/transfer.h"

namespace smezo {

class Uploads {
 public:
  using Pointers = Transfer::Pointers;
  static int64_t room_for(const ReadJob& job);  // on the device

  // BudgetError: the device has no room for the ring.
  Uploads(Transfer& from, Device& device, int64_t ring_bytes);
  ~Uploads();

  // An earlier list is given up; reads and copies under way are waited for. Those that do not go to the
  // device are used where they were read to.
  void begin(std::vector<ReadJob> jobs);
  // Waits for the next job's copy and starts those of later ones that were read. Errors: Transfer::next.
  Pointers next();
  void release_oldest();  // of those that next() gave out and that took room in either ring
  double stall_s() const { return stall_s_; }  // that next() waited for copies

 private:
  struct Item {
    Pointers at{};
    Device::Event event = 0;
    bool host_done = false;  // used where it was read to, and released
  };
  bool take();
  void give_back_host();
  void wait_for_copies();

  Transfer& from_;
  Device& device_;
  DeviceMemory memory_;
  Ring ring_;
  std::vector<ReadJob> jobs_;
  std::vector<Item> items_;
  size_t n_taken_ = 0, n_given_ = 0;  // of jobs: read and being copied; given out by next()
  size_t n_back_ = 0;                 // whose place in the host's ring was given back
  size_t oldest_ = 0;                 // that release_oldest has not passed
  double stall_s_ = 0;
};

}  // namespace smezo
