// JSON (RFC 8259), strictly: one value, no duplicate keys, valid UTF-8, no NaN, a depth limit. Integers that
// fit int64 stay exact; other numbers are double. Memory is at most about 80 bytes for each byte of text.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace smezo {

class Json {
 public:
  using Array = std::vector<Json>;
  using Object = std::vector<std::pair<std::string, Json>>;  // in the order of the text

  Json() : value_(nullptr) {}
  Json(std::nullptr_t) : value_(nullptr) {}
  Json(bool v) : value_(v) {}
  Json(int v) : value_(static_cast<int64_t>(v)) {}
  Json(int64_t v) : value_(v) {}
  Json(uint32_t v) : value_(static_cast<int64_t>(v)) {}
  Json(double v) : value_(v) {}
  Json(const char* v) : value_(std::string(v)) {}
  Json(std::string v) : value_(std::move(v)) {}
  Json(Array v) : value_(std::move(v)) {}
  Json(Object v) : value_(std::move(v)) {}
  static Json object() { return Json(Object{}); }
  static Json array() { return Json(Array{}); }

  // FormatError with the byte where it went wrong. `what` is named in messages: "config.json".
  static Json parse(std::string_view text, const std::string& what, int max_depth = 64);
  // No spaces, keys in their order, shortest digits that read back to the same double. ArgumentError for a
  // number that is not finite or a text that is not UTF-8.
  std::string dump() const;

  bool is_null() const { return std::holds_alternative<std::nullptr_t>(value_); }
  bool is_bool() const { return std::holds_alternative<bool>(value_); }
  bool is_int() const { return std::holds_alternative<int64_t>(value_); }
  bool is_number() const { return is_int() || std::holds_alternative<double>(value_); }
  bool is_string() const { return std::holds_alternative<std::string>(value_); }
  bool is_array() const { return std::holds_alternative<Array>(value_); }
  bool is_object() const { return std::holds_alternative<Object>(value_); }
  const char* type_name() const;

  // FormatError when it is something else; `what` names the value in the message.
  bool as_bool(const std::string& what) const;
  int64_t as_int(const std::string& what) const;
  double as_double(const std::string& what) const;  // an integer too
  const std::string& as_string(const std::string& what) const;
  const Array& as_array(const std::string& what) const;
  const Object& as_object(const std::string& what) const;

  const Json* find(std::string_view key) const;  // nullptr: no such key, or not an object
  const Json& at(std::string_view key, const std::string& what) const;  // FormatError: no such key
  void set(std::string key, Json value);  // replaces or appends; a null becomes an object
  void push(Json value);                  // a null becomes an array

 private:
  std::variant<std::nullptr_t, bool, int64_t, double, std::string, Array, Object> value_;
};

bool is_utf8(std::string_view text);

}  // namespace smezo
