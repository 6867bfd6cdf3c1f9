// An index set as a file: increasing element numbers under the names of tensors (safetensors, I32 or I64).
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "io/safetensors.h"

namespace smezo {

// FormatError: not I32 or I64.
void check_element_list(const TensorEntry& list);
// body(number of the first, elements) on pieces of a list, in order.
void for_elements(const Safetensors& file, const TensorEntry& list,
                  const std::function<void(int64_t first, const std::vector<int64_t>& elements)>& body);
// All of a list, as it stands in the file.
std::vector<int64_t> listed_elements(const Safetensors& file, const TensorEntry& list);

// Identity of an index file: 16 hex digits of its content's hash.
std::string hash_of_file(const std::string& path);

}  // namespace smezo
