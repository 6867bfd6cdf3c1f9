// A recursive descent parser over one pass of the text, and the writer.
#include "io/json.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/error.h"

namespace smezo {
namespace {

// Length of the UTF-8 sequence at p (RFC 3629, section 4), or 0 if it is not one: no overlong forms, no
// surrogates, nothing past U+10FFFF.
size_t utf8_length(const unsigned char* p, size_t n_left) {
  const unsigned c = p[0];
  if (c < 0x80) return 1;
  const size_t n = c >= 0xC2 && c < 0xE0 ? 2 : c >= 0xE0 && c < 0xF0 ? 3 : c >= 0xF0 && c < 0xF5 ? 4 : 0;
  if (n == 0 || n > n_left) return 0;
  for (size_t i = 1; i < n; ++i)
    if ((p[i] & 0xC0) != 0x80) return 0;
  if ((c == 0xE0 && p[1] < 0xA0) || (c == 0xED && p[1] >= 0xA0)) return 0;
  if ((c == 0xF0 && p[1] < 0x90) || (c == 0xF4 && p[1] >= 0x90)) return 0;
  return n;
}

class Parser {
 public:
  Parser(std::string_view text, const std::string& what, int max_depth)
      : text_(text), what_(what), max_depth_(max_depth) {}

  Json whole() {
    Json v = value(0);
    skip_space();
    if (at_ != text_.size()) bad("more text after the value, expected the end; two values in one file?");
    return v;
  }

 private:
  [[noreturn]] void bad(const std::string& what) const {
    fail<FormatError>("json", what_ + ", byte " + std::to_string(at_) + ": " + what);
  }
  bool more() const { return at_ < text_.size(); }
  char peek() const { return more() ? text_[at_] : '\0'; }
  void skip_space() {
    while (more() && (peek() == ' ' || peek() == '\n' || peek() == '\r' || peek() == '\t')) ++at_;
  }
  void word(std::string_view w) {
    if (text_.substr(at_, w.size()) != w)
      bad("found no value, expected true, false, null, a number, text, [ or {");
    at_ += w.size();
  }

  Json value(int depth) {
    if (depth > max_depth_) bad("nested deeper than " + std::to_string(max_depth_) + ", expected less");
    skip_space();
    if (!more()) bad("the text ends, expected a value; truncated?");
    switch (peek()) {
      case '{':
        return object(depth);
      case '[':
        return array(depth);
      case '"':
        return Json(text());
      case 't':
        word("true");
        return Json(true);
      case 'f':
        word("false");
        return Json(false);
      case 'n':
        word("null");
        return Json();
      default:
        return number();
    }
  }

  // After a member: true if another follows.
  bool next(char close) {
    skip_space();
    if (!more()) bad(std::string("the text ends, expected ',' or '") + close + "'; truncated?");
    const char c = text_[at_];
    if (c != ',' && c != close) bad(std::string("expected ',' or '") + close + "'");
    ++at_;
    return c == ',';
  }

  Json array(int depth) {
    Json::Array items;
    ++at_;
    skip_space();
    if (peek() == ']') return ++at_, Json(std::move(items));
    do items.push_back(value(depth + 1));
    while (next(']'));
    return Json(std::move(items));
  }

  Json object(int depth) {
    Json::Object members;
    ++at_;
    skip_space();
    if (peek() == '}') return ++at_, Json(std::move(members));
    do {
      skip_space();
      if (peek() != '"') bad("expected a key in quotes");
      std::string key = text();
      skip_space();
      if (peek() != ':') bad("expected ':' after the key");
      ++at_;
      members.emplace_back(std::move(key), value(depth + 1));
    } while (next('}'));
    refuse_duplicates(members);
    return Json(std::move(members));
  }

  void refuse_duplicates(const Json::Object& members) const {
    std::vector<std::string_view> keys;
    keys.reserve(members.size());
    for (const auto& m : members) keys.push_back(m.first);
    std::sort(keys.begin(), keys.end());
    const auto twice = std::adjacent_find(keys.begin(), keys.end());
    if (twice != keys.end())
      bad("the key '" + std::string(*twice) + "' stands twice in the object that ends here, expected once");
  }

  Json number() {
    const size_t begin = at_;
    const auto digits = [&] {
      const size_t first = at_;
      while (peek() >= '0' && peek() <= '9') ++at_;
      if (at_ == first) bad("found no value, expected true, false, null, a number, text, [ or {");
    };
    const bool negative = peek() == '-';
    if (negative) ++at_;
    const size_t first = at_;
    digits();
    if (text_[first] == '0' && at_ > first + 1) bad("a number with a leading zero, expected none");
    bool integer = true;
    if (peek() == '.') integer = false, ++at_, digits();
    if (peek() == 'e' || peek() == 'E') {
      integer = false, ++at_;
      if (peek() == '+' || peek() == '-') ++at_;
      digits();
    }
    const char *from = text_.data() + begin, *to = text_.data() + at_;
    int64_t i;
    const bool minus_zero = negative && to - from == 2 && from[1] == '0';
    if (integer && !minus_zero && std::from_chars(from, to, i).ec == std::errc()) return Json(i);
    double d = 0;
    if (std::from_chars(from, to, d).ec != std::errc()) bad("a number outside the range of a double");
    return Json(d);
  }

  unsigned hex4() {
    unsigned v = 0;
    if (text_.size() - at_ < 4) bad("the text ends inside \\u");
    const auto r = std::from_chars(text_.data() + at_, text_.data() + at_ + 4, v, 16);
    if (r.ec != std::errc() || r.ptr != text_.data() + at_ + 4) bad("\\u without four hex digits");
    at_ += 4;
    return v;
  }

  void escape(std::string* out) {
    const char c = peek();
    ++at_;
    switch (c) {
      case '"':
        *out += '"';
        return;
      case '\\':
        *out += '\\';
        return;
      case '/':
        *out += '/';
        return;
      case 'b':
        *out += '\b';
        return;
      case 'f':
        *out += '\f';
        return;
      case 'n':
        *out += '\n';
        return;
      case 'r':
        *out += '\r';
        return;
      case 't':
        *out += '\t';
        return;
      case 'u':
        break;
      default:
        --at_;
        bad("an unknown escape");
    }
    unsigned u = hex4();
    if (u >= 0xD800 && u < 0xE000) {
      const bool pair = u < 0xDC00 && text_.substr(at_, 2) == "\\u";
      if (pair) at_ += 2;
      const unsigned low = pair ? hex4() : 0;
      if (low < 0xDC00 || low > 0xDFFF) bad("half a surrogate pair, expected both halves");
      u = 0x10000 + ((u - 0xD800) << 10) + (low - 0xDC00);
    }
    const auto put = [&](unsigned v) { *out += static_cast<char>(v); };
    if (u < 0x80) return put(u);
    if (u < 0x800) return put(0xC0 | u >> 6), put(0x80 | (u & 63));
    if (u < 0x10000) return put(0xE0 | u >> 12), put(0x80 | (u >> 6 & 63)), put(0x80 | (u & 63));
    put(0xF0 | u >> 18), put(0x80 | (u >> 12 & 63)), put(0x80 | (u >> 6 & 63)), put(0x80 | (u & 63));
  }

  std::string text() {
    std::string out;
    ++at_;
    for (;;) {
      if (!more()) bad("the text ends inside quotes; truncated?");
      const auto c = static_cast<unsigned char>(peek());
      if (c == '"') return ++at_, out;
      if (c == '\\') {
        ++at_;
        escape(&out);
        continue;
      }
      if (c < 0x20) bad("a control character inside quotes, expected an escape");
      const size_t n =
          utf8_length(reinterpret_cast<const unsigned char*>(text_.data()) + at_, text_.size() - at_);
      if (n == 0) bad("not valid UTF-8");
      out.append(text_, at_, n);
      at_ += n;
    }
  }

  std::string_view text_;
  const std::string& what_;
  int max_depth_;
  size_t at_ = 0;
};

void dump_text(const std::string& s, std::string* out) {
  check<ArgumentError>(is_utf8(s), "json", "a text to write is not UTF-8");
  *out += '"';
  for (const char c : s) {
    if (c == '"' || c == '\\') {
      *out += '\\';
      *out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      constexpr const char* digits = "0123456789abcdef";
      *out += "\\u00";
      *out += digits[c >> 4];
      *out += digits[c & 15];
    } else {
      *out += c;
    }
  }
  *out += '"';
}

void dump_double(double d, std::string* out) {
  check<ArgumentError>(std::isfinite(d), "json",
                       "a number to write is not finite, and JSON has no word for it");
  char text[32];
  const auto r = std::to_chars(text, text + sizeof text, d);
  const std::string_view digits(text, static_cast<size_t>(r.ptr - text));
  *out += digits;
  // Without a point it would read back as an integer.
  if (digits.find_first_of(".e") == std::string_view::npos) *out += ".0";
}

void dump_value(const Json& v, std::string* out) {
  bool first = true;
  const auto comma = [&] {
    if (!first) *out += ',';
    first = false;
  };
  if (v.is_null()) {
    *out += "null";
  } else if (v.is_bool()) {
    *out += v.as_bool("") ? "true" : "false";
  } else if (v.is_int()) {
    *out += std::to_string(v.as_int(""));
  } else if (v.is_number()) {
    dump_double(v.as_double(""), out);
  } else if (v.is_string()) {
    dump_text(v.as_string(""), out);
  } else if (v.is_array()) {
    *out += '[';
    for (const auto& item : v.as_array("")) comma(), dump_value(item, out);
    *out += ']';
  } else {
    *out += '{';
    for (const auto& [key, item] : v.as_object(""))
      comma(), dump_text(key, out), *out += ':', dump_value(item, out);
    *out += '}';
  }
}

template <class T, class V>
const T& as(const V& value, const Json& json, const char* expected, const std::string& what) {
  const T* p = std::get_if<T>(&value);
  if (!p) fail<FormatError>("json", what + " is " + json.type_name() + ", expected " + expected);
  return *p;
}

}  // namespace

bool is_utf8(std::string_view text) {
  const auto* p = reinterpret_cast<const unsigned char*>(text.data());
  for (size_t i = 0; i < text.size();) {
    const size_t n = utf8_length(p + i, text.size() - i);
    if (n == 0) return false;
    i += n;
  }
  return true;
}

Json Json::parse(std::string_view text, const std::string& what, int max_depth) {
  return Parser(text, what, max_depth).whole();
}

std::string Json::dump() const {
  std::string out;
  dump_value(*this, &out);
  return out;
}

const char* Json::type_name() const {
  constexpr const char* names[] = {"null", "true or false", "an integer", "a number",
                                   "text", "an array",      "an object"};
  return names[value_.index()];
}

bool Json::as_bool(const std::string& what) const { return as<bool>(value_, *this, "true or false", what); }
int64_t Json::as_int(const std::string& what) const { return as<int64_t>(value_, *this, "an integer", what); }
double Json::as_double(const std::string& what) const {
  return is_int() ? static_cast<double>(std::get<int64_t>(value_))
                  : as<double>(value_, *this, "a number", what);
}
const std::string& Json::as_string(const std::string& what) const {
  return as<std::string>(value_, *this, "text", what);
}
const Json::Array& Json::as_array(const std::string& what) const {
  return as<Array>(value_, *this, "an array", what);
}
const Json::Object& Json::as_object(const std::string& what) const {
  return as<Object>(value_, *this, "an object", what);
}

const Json* Json::find(std::string_view key) const {
  const Object* o = std::get_if<Object>(&value_);
  if (!o) return nullptr;
  for (const auto& m : *o)
    if (m.first == key) return &m.second;
  return nullptr;
}

const Json& Json::at(std::string_view key, const std::string& what) const {
  as_object(what);
  const Json* v = find(key);
  if (!v) fail<FormatError>("json", what + " has no key '" + std::string(key) + "', expected one");
  return *v;
}

void Json::set(std::string key, Json value) {
  if (is_null()) value_ = Object{};
  check<ArgumentError>(is_object(), "json", "set on something that is not an object");
  auto& members = std::get<Object>(value_);
  for (auto& m : members) {
    if (m.first == key) {
      m.second = std::move(value);
      return;
    }
  }
  members.emplace_back(std::move(key), std::move(value));
}

void Json::push(Json value) {
  if (is_null()) value_ = Array{};
  check<ArgumentError>(is_array(), "json", "push on something that is not an array");
  std::get<Array>(value_).push_back(std::move(value));
}

}  // namespace smezo
