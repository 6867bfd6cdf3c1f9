// Word lists: a name and what it stands for.
#pragma once
#include <string>

#include "base/error.h"

namespace smezo {

template <class T>
struct Named {
  const char* name;
  T value;
};

// ArgumentError lists the known names.
template <class T, size_t N>
T value_of(const Named<T> (&table)[N], const char* what, const std::string& name) {
  std::string known;
  for (const Named<T>& r : table) {
    if (name == r.name) return r.value;
    known += std::string(known.empty() ? "" : ", ") + r.name;
  }
  fail<ArgumentError>(what, "'" + name + "', expected one of " + known);
}

template <class T, size_t N>
const char* name_of(const Named<T> (&table)[N], T value) {
  for (const Named<T>& r : table) {
    if (r.value == value) return r.name;
  }
  return "?";
}

}  // namespace smezo
