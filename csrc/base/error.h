// The four exception types and the one message grammar: `[where] what was found, what was expected, likely
// cause`.
#pragma once
#include <cstdio>
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

// A number as a message shows it: small ones too, which std::to_string makes 0.
inline std::string text(double x) {
  char out[32];
  std::snprintf(out, sizeof(out), "%.6g", x);
  return out;
}

template <class E>
[[noreturn]] void fail(const char* where, const std::string& what) {
  throw E(std::string("[") + where + "] " + what);
}
template <class E>
[[noreturn]] void fail_named(const std::string& path, const E& e) {
  const std::string text = e.what();
  const size_t at = text.find("] ") + 2;
  throw E(text.find(path) != std::string::npos ? text
                                               : text.substr(0, at) + "'" + path + "': " + text.substr(at));
}
// body(), which knows the content of a file and not its name: what it finds wrong is told with the name.
template <class Body>
auto named(const std::string& path, const Body& body) {
  try {
    return body();
  } catch (const FormatError& e) {
    fail_named(path, e);
  } catch (const ArgumentError& e) {
    fail_named(path, e);
  }
}
template <class E>
void check(bool ok, const char* where, const std::string& what) {
  if (!ok) fail<E>(where, what);
}

}  // namespace smezo
