// Generations: their names, and which there are.
#include "io/generation.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "base/error.h"

namespace smezo {
namespace {

const std::string prefix = "generation-", suffix = ".safetensors";
constexpr size_t n_digits = 10;

}  // namespace

std::string generation_path(const std::string& folder, uint32_t watermark) {
  char digits[n_digits + 1];
  std::snprintf(digits, sizeof digits, "%010u", watermark);
  return join(folder, prefix + digits + suffix);
}

void write_generation(const std::string& folder, const StateHeader& header,
                      const std::vector<StateTensor>& tensors, const std::function<void(StateSink&)>& fill) {
  make_folders(folder);
  write_state(generation_path(folder, header.watermark), StateKind::generation, header, tensors, fill);
}

std::vector<uint32_t> list_generations(const std::string& folder) {
  std::vector<uint32_t> found;
  if (!folder_exists(folder)) return found;
  for (const auto& name : list_folder(folder)) {
    // Whatever else lies there, such as what a crash left half written, is none of ours.
    if (name.size() != prefix.size() + n_digits + suffix.size()) continue;
    const auto w = static_cast<uint32_t>(std::strtoul(name.c_str() + prefix.size(), nullptr, 10));
    if (join(folder, name) == generation_path(folder, w)) found.push_back(w);
  }
  std::sort(found.rbegin(), found.rend());
  return found;
}

StateReader open_generation(const std::string& folder, uint32_t watermark,
                            const std::string& base_fingerprint) {
  const std::string path = generation_path(folder, watermark);
  StateReader r = StateReader::open(path, StateKind::generation);
  if (r.header().watermark != watermark)
    fail<FormatError>("generation", "'" + path + "' holds watermark " + std::to_string(r.header().watermark) +
                                        ", expected that of its name; renamed?");
  if (!base_fingerprint.empty() && r.header().base_fingerprint != base_fingerprint)
    fail<FormatError>("generation", "'" + path + "' belongs to base " + r.header().base_fingerprint +
                                        ", expected " + base_fingerprint + "; another model?");
  r.verify_all();
  return r;
}

void remove_old_generations(const std::string& folder, int n_keep) {
  const auto all = list_generations(folder);
  for (size_t i = static_cast<size_t>(std::max(n_keep, 0)); i < all.size(); ++i)
    remove_file(generation_path(folder, all[i]));
}

}  // namespace smezo
