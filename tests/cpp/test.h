// The smallest test frame that does the job: TEST(name) { CHECK(...); } and a main that runs all, or those
// whose name contains argv[1].
#pragma once
#include <cstdio>
#include <cstring>
#include <exception>
#include <functional>
#include <string>
#include <vector>

namespace smezo_test {
struct Case {
  const char* name;
  void (*body)();
};
inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}
inline int& failures() {
  static int n = 0;
  return n;
}
struct Register {
  Register(const char* name, void (*body)()) { cases().push_back({name, body}); }
};
template <class E, class F>
bool throws_with(F&& f, const char* part, std::string* got) {
  try {
    f();
  } catch (const E& e) {
    *got = e.what();
    return std::strstr(e.what(), part) != nullptr;
  } catch (const std::exception& e) {
    *got = std::string("another type: ") + e.what();
    return false;
  }
  *got = "nothing thrown";
  return false;
}
}  // namespace smezo_test

#define TEST(name)                                            \
  static void test_##name();                                  \
  static smezo_test::Register reg_##name(#name, test_##name); \
  static void test_##name()

#define CHECK(cond)                                                          \
  do {                                                                       \
    if (!(cond)) {                                                           \
      ++smezo_test::failures();                                              \
      std::printf("  %s:%d: CHECK(%s) failed\n", __FILE__, __LINE__, #cond); \
    }                                                                        \
  } while (0)

// The statement throws type E and its message contains `part`.
#define CHECK_THROWS(E, part, ...)                                                                 \
  do {                                                                                             \
    std::string got_;                                                                              \
    if (!smezo_test::throws_with<E>([&] { __VA_ARGS__; }, part, &got_)) {                          \
      ++smezo_test::failures();                                                                    \
      std::printf("  %s:%d: expected %s containing '%s', got: %s\n", __FILE__, __LINE__, #E, part, \
                  got_.c_str());                                                                   \
    }                                                                                              \
  } while (0)

#define TEST_MAIN()                                              \
  int main(int argc, char** argv) {                              \
    int ran = 0, failed = 0;                                     \
    for (const auto& c : smezo_test::cases()) {                  \
      if (argc > 1 && !std::strstr(c.name, argv[1])) continue;   \
      const int before = smezo_test::failures();                 \
      try {                                                      \
        c.body();                                                \
      } catch (const std::exception& e) {                        \
        ++smezo_test::failures();                                \
        std::printf("  %s: uncaught %s\n", c.name, e.what());    \
      }                                                          \
      ++ran;                                                     \
      if (smezo_test::failures() != before) {                    \
        ++failed;                                                \
        std::printf("FAIL %s\n", c.name);                        \
      }                                                          \
    }                                                            \
    std::printf("%d passed, %d failed\n", ran - failed, failed); \
    return failed ? 1 : 0;                                       \
  }
