#include "store/unit_source.h"

namespace smezo {

void UnitSource::begin(std::vector<UploadJob> jobs) {
  if (uploads_) return uploads_->begin(std::move(jobs));
  std::vector<ReadJob> reads;
  for (const UploadJob& j : jobs) {
    reads.push_back(j.read);
    reads.back().to = j.to;
  }
  transfer_.begin(std::move(reads));
}

}  // namespace smezo
