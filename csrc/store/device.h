// Memory that is not the host's: products read from it, the host only copies into it, behind its own back.
#pragma once
#include <cstdint>
#include <memory>

namespace smezo {

class Device {
 public:
  virtual ~Device() = default;

  // Aligned to a page of the host; nullptr: it has not that much left.
  virtual uint8_t* allocate(int64_t n_bytes) = 0;
  virtual void free(uint8_t* memory) = 0;
  virtual int64_t size_bytes() const = 0;
  virtual int64_t used_bytes() const = 0;
  virtual int64_t peak_bytes() const = 0;

  // Copies are made one after the other, in the order they were asked for. `from` must stay as it is until
  // the copy's event has come; then all earlier ones have.
  using Event = int64_t;
  virtual Event copy(uint8_t* to, const uint8_t* from, int64_t n_bytes) = 0;
  virtual bool has_come(Event event) const = 0;
  virtual void wait(Event event) = 0;
};

struct DeviceFree {
  Device* device = nullptr;
  void operator()(uint8_t* memory) const { device->free(memory); }
};
using DeviceMemory = std::unique_ptr<uint8_t, DeviceFree>;
inline DeviceMemory allocate_on(Device& device, int64_t n_bytes) {
  return DeviceMemory(device.allocate(n_bytes), DeviceFree{&device});
}

// Stands in for an accelerator, so that schedules and budgets are tested without one: host memory with a
// counter of its own, and a thread that copies. bytes_per_s 0: as fast as it goes.
std::unique_ptr<Device> make_fake_device(int64_t size_bytes, int64_t bytes_per_s = 0);

}  // namespace smezo
