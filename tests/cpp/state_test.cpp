// The verbs between a working copy, its base and the packed values of its support, of every instruction set
// of this machine against the scalar set, bit for bit; and the scalar set against a description in words of
// the format. Packed values and working copies end at a page that must not be touched.
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <vector>

#include "kernel_tables.h"
#include "kernels/kernels.h"
#include "some_weights.h"
#include "test.h"

namespace {
using namespace smezo;
using namespace smezo_test;

constexpr DType kBases[] = {DType::F32, DType::F16, DType::BF16, DType::BF16T8, DType::NF4, DType::I8};
constexpr DType kStates[] = {DType::F32, DType::BF16, DType::BF16T8};
constexpr MaskKind kMasks[] = {MaskKind::all, MaskKind::small, MaskKind::large};

// n bytes that end where a page without access begins.
class AtPageEnd {
 public:
  explicit AtPageEnd(int64_t n) : n_(static_cast<size_t>(n)) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    room_ = (n_ + page - 1) / page * page;
    memory_ = static_cast<uint8_t*>(
        mmap(nullptr, room_ + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mapped_ = room_ + page;
    mprotect(memory_ + room_, page, PROT_NONE);
    for (size_t i = 0; i < room_; ++i) memory_[i] = static_cast<uint8_t>(i * 37 + 11);
  }
  AtPageEnd(const AtPageEnd&) = delete;
  ~AtPageEnd() { munmap(memory_, mapped_); }
  uint8_t* data() const { return memory_ + room_ - n_; }
  void fill(std::mt19937& random) {
    for (size_t i = 0; i < n_; ++i) data()[i] = static_cast<uint8_t>(random());
  }
  bool operator==(const AtPageEnd& o) const {  // what lies before them too
    return room_ == o.room_ && std::memcmp(memory_, o.memory_, room_) == 0;
  }

 private:
  size_t n_, room_, mapped_;
  uint8_t* memory_;
};

int64_t value_bytes(DType d) { return d == DType::F32 ? 4 : 2; }

// A working copy of elements [first, end), or n packed values.
struct Memory {
  AtPageEnd values, tail;
  Memory(DType d, int64_t n) : values(n * value_bytes(d)), tail(d == DType::BF16T8 ? n : 0) {}
  void fill(std::mt19937& random) {
    values.fill(random);
    tail.fill(random);
  }
  int8_t* tail_data() const { return reinterpret_cast<int8_t*>(tail.data()); }
  bool operator==(const Memory& o) const { return values == o.values && tail == o.tail; }
};

void put(StateJob& j, const Memory& state) {
  j.state.data = state.values.data();
  j.state.tail = j.state.dtype == DType::BF16T8 ? state.tail_data() : nullptr;
}
void put_packed(StateJob& j, const Memory& packed) {
  j.packed = packed.values.data();
  j.packed_tail = j.state.dtype == DType::BF16T8 ? packed.tail_data() : nullptr;
}

float some_threshold(std::mt19937& random) {
  return random() % 8   ? 0.002f + 0.03f * static_cast<float>(below(random, 100)) / 100
         : random() % 2 ? 0.0f
                        : INFINITY;
}

int64_t errors_of(const Kernels& k, const Kernels& oracle, StateJob j, int64_t e0, int64_t n, int64_t end,
                  std::mt19937& random) {
  const int64_t first = j.state.first, count = oracle.count_state(j, e0, n);
  int64_t errors = k.count_state(j, e0, n) != count;
  for (const bool with_packed : {false, true}) {
    Memory got(j.state.dtype, end - first), expected(j.state.dtype, end - first),
        packed(j.state.dtype, count);
    packed.fill(random);
    if (with_packed) put_packed(j, packed);
    put(j, expected);
    errors += oracle.unpack_state(j, e0, n) != (with_packed ? count : 0);
    put(j, got);
    errors += k.unpack_state(j, e0, n) != (with_packed ? count : 0);
    errors += !(got == expected);
  }
  Memory state(j.state.dtype, end - first), got(j.state.dtype, count), expected(j.state.dtype, count);
  state.fill(random);
  put(j, state);
  put_packed(j, expected);
  errors += oracle.pack_state(j, e0, n) != count;
  put_packed(j, got);
  errors += k.pack_state(j, e0, n) != count;
  return errors + !(got == expected);
}

}  // namespace

TEST(states_are_the_scalar_sets_bit_for_bit) {
  constexpr int64_t kCols[] = {1, 3, 16, 20, 64, 576, 1000, 2048, 4100};
  for (const Table& table : tables_but_products()) {
    if (table.name == "scalar") continue;
    std::mt19937 random(1);
    for (DType base : kBases) {
      for (DType state : kStates) {
        for (MaskKind mask : kMasks) {
          for (int round = 0; round < 20; ++round) {
            const int64_t cols = kCols[below(random, std::size(kCols))],
                          rows = 1 + below(random, 9000) / cols;
            const Tensor t = make_tensor(random, base, rows, cols);
            const int64_t n = 1 + below(random, static_cast<uint32_t>(t.view.n()));
            const int64_t e0 = below(random, static_cast<uint32_t>(t.view.n() - n + 1));
            const Tensor part = part_of(t, some_first(random, t.view, e0), some_end(random, t.view, e0 + n));
            StateJob j{random() % 2 ? part.view : t.view, t.view, {mask, some_threshold(random), 65536}};
            j.state.dtype = state;
            if (random() % 2)  // a value that is there
              j.mask.h = std::fabs(
                  nearest_value(state, decode_at(t.view, e0 + below(random, static_cast<uint32_t>(n)))));
            j.state.first = e0 - below(random, static_cast<uint32_t>(std::min<int64_t>(e0, 40) + 1));
            const int64_t end = e0 + n + (random() % 2 ? 0 : below(random, 40));
            const int64_t errors = errors_of(*table.kernels, *scalar_kernels(), j, e0, n, end, random);
            CHECK(errors == 0);
            if (errors != 0)
              std::printf("    %s base %s state %s mask %d cols %lld e0 %lld n %lld: %lld wrong\n",
                          table.name.c_str(), dtype_name(base), dtype_name(state), static_cast<int>(mask),
                          static_cast<long long>(cols), static_cast<long long>(e0), static_cast<long long>(n),
                          static_cast<long long>(errors));
          }
        }
      }
    }
  }
}

// By arithmetic on doubles: the nearest multiple of the format's last place, ties to even.
TEST(a_fresh_state_is_the_base_rounded_to_nearest) {
  std::mt19937 random(2);
  constexpr int64_t n = 4000;
  std::vector<float> base(n);
  for (float& x : base) {
    x = std::ldexp(static_cast<float>(static_cast<int32_t>(random()) >> 7), -30);
    if (random() % 4 == 0) x = f32_from_bits((f32_bits(x) & ~0xFFFFu) | (random() % 3) << 15);
    if (random() % 4 == 0) x = f32_from_bits((f32_bits(x) & ~0xFFu) | (random() % 3) << 7);
  }
  for (const Table& table : tables_but_products()) {
    for (const int kept : {8, 16}) {  // bits of the significand, the hidden one too
      const DType dtype = kept == 8 ? DType::BF16 : DType::BF16T8;
      std::vector<uint16_t> high(n);
      std::vector<int8_t> tail(n);
      StateJob j;
      j.base.data = base.data();
      j.base.rows = 1;
      j.base.cols = n;
      j.state = j.base;
      j.state.dtype = dtype;
      j.state.data = high.data();
      j.state.tail = tail.data();
      CHECK(table.kernels->unpack_state(j, 0, n) == 0);
      int64_t wrong = 0;
      for (size_t i = 0; i < n; ++i) {
        int exponent = 0;
        const double fraction = std::frexp(static_cast<double>(base[i]), &exponent);
        const double expected = std::ldexp(std::nearbyint(std::ldexp(fraction, kept)), exponent - kept);
        const uint32_t bits = static_cast<uint32_t>(high[i]) << 16;
        const uint32_t low = dtype == DType::BF16T8 ? static_cast<uint32_t>(tail[i] * 256) : 0;
        wrong += static_cast<double>(f32_from_bits(bits + low)) != expected;
      }
      CHECK(wrong == 0);
    }
  }
}

// What was packed comes back to its places, and what the mask leaves out is the base again.
TEST(packing_and_unpacking_brings_a_state_back) {
  for (const Table& table : tables_but_products()) {
    std::mt19937 random(3);
    for (DType base : kBases) {
      const Tensor t = make_tensor(random, base, 7, 1000);
      const int64_t n = t.view.n();
      for (DType dtype : kStates) {
        StateJob j{t.view, t.view, {MaskKind::small, 0.015f, 65536}};
        j.state.dtype = dtype;
        Memory fresh(dtype, n), trained(dtype, n), back(dtype, n);
        put(j, fresh);
        table.kernels->unpack_state(j, 0, n);
        put(j, trained);
        table.kernels->unpack_state(j, 0, n);
        const WeightView from = [&] {
          WeightView w = j.state;
          w.data = fresh.values.data();
          w.tail = j.state.tail ? fresh.tail_data() : nullptr;
          return w;
        }();
        int64_t changed = 0;
        for (int64_t e = 0; e < n; ++e) {
          if (!(std::fabs(decode_at(from, e)) <= 0.015f)) continue;
          encode_at(j.state, e, static_cast<float>(e + 1), 0);
          ++changed;
        }
        const Memory packed(dtype, changed);
        put_packed(j, packed);
        CHECK(changed > 100 && changed < n);
        CHECK(table.kernels->pack_state(j, 0, n) == changed);
        put(j, back);
        CHECK(table.kernels->unpack_state(j, 0, n) == changed);
        CHECK(back == trained);
      }
    }
  }
}

TEST_MAIN()
