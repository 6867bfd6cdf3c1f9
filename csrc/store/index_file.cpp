#include "store/index_file.h"

#include <algorithm>

#include "base/error.h"
#include "store/content_hash.h"

namespace smezo {
namespace {

constexpr int64_t kPiece = 4096;             // elements
constexpr int64_t kHashPiece = 16 * kPiece;  // bytes, a multiple of 32

}  // namespace

void check_element_list(const TensorEntry& list) {
  check<FormatError>(list.dtype == "I32" || list.dtype == "I64", "index set",
                     "'" + list.name + "' is " + list.dtype + ", expected I32 or I64 element numbers");
}

void for_elements(const Safetensors& file, const TensorEntry& list,
                  const std::function<void(int64_t, const std::vector<int64_t>&)>& body) {
  check_element_list(list);
  std::vector<int64_t> out;
  std::vector<int32_t> narrow;
  for (int64_t first = 0; first < list.n; first += kPiece) {
    const int64_t n = std::min(kPiece, list.n - first);
    out.resize(static_cast<size_t>(n));
    if (list.dtype == "I64") {
      file.read(list, first * 8, n * 8, out.data());
    } else {
      narrow.resize(out.size());
      file.read(list, first * 4, n * 4, narrow.data());
      std::copy(narrow.begin(), narrow.end(), out.begin());
    }
    body(first, out);
  }
}

std::vector<int64_t> listed_elements(const Safetensors& file, const TensorEntry& list) {
  std::vector<int64_t> out;
  out.reserve(static_cast<size_t>(list.n));
  for_elements(file, list,
               [&](int64_t, const std::vector<int64_t>& e) { out.insert(out.end(), e.begin(), e.end()); });
  return out;
}

std::string hash_of_file(const std::string& path) {
  const File file = File::open(path, Open::read);
  const int64_t size = file.size();
  ContentHash h;
  std::vector<uint8_t> piece(static_cast<size_t>(kHashPiece));
  for (int64_t at = 0; at < size; at += kHashPiece) {
    const int64_t n = std::min(kHashPiece, size - at);
    file.read(piece.data(), n, at);
    h.add(piece.data(), n);
  }
  return hash_text(h.value());
}

}  // namespace smezo
