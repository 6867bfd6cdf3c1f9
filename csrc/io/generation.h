// Generations: working copies on disk, each file immutable, named by its watermark:
// generation-0000001200.safetensors.
#pragma once
#include "io/state_file.h"

namespace smezo {

std::string generation_path(const std::string& folder, uint32_t watermark);

// Makes the folder if need be. The caller has synced the journal to the watermark (I2).
void write_generation(const std::string& folder, const StateHeader& header,
                      const std::vector<StateTensor>& tensors, const std::function<void(StateSink&)>& fill);

// Watermarks of the generations in a folder, newest first; none if there is no folder.
std::vector<uint32_t> list_generations(const std::string& folder);
// Header and content proved; the name, the watermark and the base agree.
StateReader open_generation(const std::string& folder, uint32_t watermark,
                            const std::string& base_fingerprint = "");
// Removes all but the newest `n_keep`.
void remove_old_generations(const std::string& folder, int n_keep);

}  // namespace smezo
