#include "store/new_checkpoint.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <string_view>

#include "base/error.h"
#include "io/file.h"
#include "io/json.h"

namespace smezo {
namespace {

constexpr int64_t kCopyBytes = 1 << 20;

bool exists(const std::string& path) { return file_exists(path) || folder_exists(path); }

// Files only: nothing below makes folders in it.
void remove_folder(const std::string& path) {
  std::vector<std::string> names;
  file_system().list(path, &names);
  for (const std::string& name : names) file_system().remove(join(path, name));
  file_system().remove(path);
}

std::string without_slashes(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

std::string shard_name(size_t shard, size_t n_shards) {
  if (n_shards == 1) return "model.safetensors";
  char text[64];
  std::snprintf(text, sizeof text, "model-%05zu-of-%05zu.safetensors", shard + 1, n_shards);
  return text;
}

bool ends_with(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

// Weights in any format, whatever the folder keeps them for: the new folder has its own.
bool is_weight_file(const std::string& name) {
  for (const char* end : {".safetensors", ".index.json", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5",
                          ".msgpack", ".onnx", ".onnx_data"})
    if (ends_with(name, end)) return true;
  return false;
}

}  // namespace

NewFolder::NewFolder(const std::string& path) : path_(without_slashes(path)) {
  check<ArgumentError>(!path_.empty() && !exists(path_), "output",
                       "'" + path +
                           "' is already there, expected a name that is free; remove it, or choose "
                           "another");
  temporary_ = path_ + ".tmp-" + std::to_string(getpid());
  if (folder_exists(temporary_)) remove_folder(temporary_);  // a dead process of this number left it
  make_folders(temporary_);
}

NewFolder::~NewFolder() {
  if (!finished_) remove_folder(temporary_);
}

void NewFolder::finish() {
  FileSystem& fs = file_system();
  check<ArgumentError>(!exists(path_), "output", "'" + path_ + "' appeared while it was being written");
  check<IoError>(
      fs.sync_folder(temporary_) >= 0 && fs.rename(temporary_, path_) >= 0, "output",
      "cannot rename '" + temporary_ + "' to '" + path_ + "'; another file system, or no permission?");
  finished_ = true;
  check<IoError>(fs.sync_folder(parent_folder(path_)) >= 0, "output",
                 "cannot sync the folder of '" + path_ + "': it is there but may be lost in a power cut");
}

void copy_other_files(const std::string& from, const std::string& to) {
  for (const std::string& name : list_folder(from)) {
    if (name == "config.json" || name[0] == '.' || is_weight_file(name) || !file_exists(join(from, name)))
      continue;
    const File source = File::open(join(from, name), Open::read);
    write_atomically(join(to, name), [&](File& f) {
      std::vector<uint8_t> piece(static_cast<size_t>(kCopyBytes));
      const int64_t size = source.size();
      for (int64_t at = 0; at < size; at += kCopyBytes) {
        const int64_t n = std::min(kCopyBytes, size - at);
        source.read(piece.data(), n, at);
        f.write(piece.data(), n, at);
      }
    });
  }
}

int64_t spec_bytes(const TensorSpec& spec) {
  int64_t bits = safetensors_dtype_bits(spec.dtype);
  for (const int64_t d : spec.shape) bits *= d;
  return bits / 8;
}

int64_t write_shards(const std::string& folder, const std::vector<TensorGroup>& groups, int64_t shard_bytes,
                     const std::function<void(size_t, SafetensorsSink&, size_t)>& fill) {
  struct Shard {
    std::vector<TensorSpec> tensors;
    std::vector<std::pair<size_t, size_t>> groups;  // group, its first tensor
    int64_t n_bytes = 0;
  };
  std::vector<Shard> shards(1);
  int64_t total = 0;
  for (size_t g = 0; g < groups.size(); ++g) {
    int64_t n_bytes = 0;
    for (const TensorSpec& t : groups[g]) n_bytes += spec_bytes(t);
    if (shards.back().n_bytes > 0 && shards.back().n_bytes + n_bytes > shard_bytes) shards.emplace_back();
    Shard& s = shards.back();
    s.groups.emplace_back(g, s.tensors.size());
    s.tensors.insert(s.tensors.end(), groups[g].begin(), groups[g].end());
    s.n_bytes += n_bytes;
    total += n_bytes;
  }
  Json weight_map = Json::object();
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string name = shard_name(i, shards.size());
    for (const TensorSpec& t : shards[i].tensors) weight_map.set(t.name, name);
    // transformers refuses a file that does not say which framework's it is.
    write_safetensors(join(folder, name), shards[i].tensors, {{"format", "pt"}}, [&](SafetensorsSink& sink) {
      for (const auto& [group, first] : shards[i].groups) fill(group, sink, first);
    });
  }
  if (shards.size() > 1) {
    const Json index = Json::Object{{"metadata", Json::Object{{"total_size", total}}},
                                    {"weight_map", std::move(weight_map)}};
    write_atomically(join(folder, "model.safetensors.index.json"), index.dump());
  }
  return total;
}

}  // namespace smezo
