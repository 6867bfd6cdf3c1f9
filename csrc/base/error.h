// The four exception types and the one message grammar: `[where] what was found, what was expected, likely
// cause`.
#pragma once
#include <stdexcept>
#include <string>

namespace smezo {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct ArgumentError : Error {  // the caller asked for something that cannot be
  using Error::Error;
};
struct FormatError : Error {  // a file is not what it claims to be
  using Error::Error;
};
struct BudgetError : Error {  // it does not fit in the bytes given
  using Error::Error;
};
struct IoError : Error {  // the operating system said no
  using Error::Error;
};

template <class E>
[[noreturn]] void fail(const char* where, const std::string& what) {
  throw E(std::string("[") + where + "] " + what);
}
template <class E>
void check(bool ok, const char* where, const std::string& what) {
  if (!ok) fail<E>(where, what);
}

}  // namespace smezo
