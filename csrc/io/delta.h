// The delta: what training changed, as absolute trained values at a watermark. See io/state_file.h for the
// file.
#pragma once
#include "io/state_file.h"

namespace smezo {

void write_delta(const std::string& path, const StateHeader& header, const std::vector<StateTensor>& tensors,
                 const std::function<void(StateSink&)>& fill);

// Header and content proved. FormatError also when `base_fingerprint` is not empty and the delta belongs to
// another base.
StateReader open_delta(const std::string& path, const std::string& base_fingerprint = "");

}  // namespace smezo
