// Memory that is the system's again the moment it is let go of. An allocator keeps what lies between other
// blocks, and a budget that counts bytes would not see it.
#pragma once
#include <cstdint>
#include <utility>

namespace smezo {

class Pages {
 public:
  Pages() = default;
  explicit Pages(int64_t n_bytes);  // zeros; data() is nullptr where the system has none
  ~Pages();
  Pages(Pages&& other) noexcept
      : at_(std::exchange(other.at_, nullptr)), n_bytes_(std::exchange(other.n_bytes_, 0)) {}
  Pages& operator=(Pages&& other) noexcept {
    std::swap(at_, other.at_);
    std::swap(n_bytes_, other.n_bytes_);
    return *this;
  }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  uint8_t* data() const { return at_; }

 private:
  uint8_t* at_ = nullptr;
  int64_t n_bytes_ = 0;
};

}  // namespace smezo
