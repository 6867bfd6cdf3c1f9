// Where units come from: read ahead into host memory and, where there is a device, copied ahead to it.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "store/uploads.h"

namespace smezo {

class UnitSource {
 public:
  UnitSource(const std::vector<std::string>& paths, int64_t ring_bytes, int n_readers, PageCache cache)
      : transfer_(paths, ring_bytes, n_readers, cache) {}

  // From now on. BudgetError: it has no room for a ring.
  void use_device(Device& device) {
    uploads_ = std::make_unique<Uploads>(transfer_, device, transfer_.ring_bytes());
  }
  int64_t room_for(const ReadJob& job) const {  // of a unit that stays
    return uploads_ ? Uploads::room_for(job) : Transfer::room_for(job);
  }

  void begin(std::vector<ReadJob> jobs) {
    uploads_ ? uploads_->begin(std::move(jobs)) : transfer_.begin(std::move(jobs));
  }
  Transfer::Pointers next() { return uploads_ ? uploads_->next() : transfer_.next(); }
  void release_oldest() { uploads_ ? uploads_->release_oldest() : transfer_.release_oldest(); }
  double stall_s() const { return transfer_.stall_s() + (uploads_ ? uploads_->stall_s() : 0); }

  Transfer& transfer() { return transfer_; }
  const Transfer& transfer() const { return transfer_; }

 private:
  Transfer transfer_;
  std::unique_ptr<Uploads> uploads_;
};

}  // namespace smezo
