// The delta, in terms of the state file.
#include "io/delta.h"

#include "base/error.h"

namespace smezo {

void write_delta(const std::string& path, const StateHeader& header, const std::vector<StateTensor>& tensors,
                 const std::function<void(StateSink&)>& fill) {
  write_state(path, StateKind::delta, header, tensors, fill);
}

StateReader open_delta(const std::string& path, const std::string& base_fingerprint) {
  StateReader r = StateReader::open(path, StateKind::delta);
  if (!base_fingerprint.empty() && r.header().base_fingerprint != base_fingerprint)
    fail<FormatError>("delta", "'" + path + "' was trained on base " + r.header().base_fingerprint +
                                   ", expected " + base_fingerprint +
                                   "; another model, or a newer download of it?");
  r.verify_all();
  return r;
}

}  // namespace smezo
