// The verbs on stored weights (produce, apply_update, decode, noise) of every instruction set of this
// machine, bit for bit against the element functions of kernels/element.h, over all kinds of noise, mask,
// format, mode and rounding, at ragged places, of whole tensors and of views that hold only a part of one.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <random>
#include <vector>

#include "kernel_tables.h"
#include "kernels/element.h"
#include "kernels/kernels.h"
#include "some_weights.h"
#include "test.h"

namespace {
using namespace smezo;
using namespace smezo_test;

constexpr NoiseKind kNoises[] = {NoiseKind::gaussian, NoiseKind::gaussian8, NoiseKind::rademacher};
constexpr MaskKind kMasks[] = {MaskKind::all, MaskKind::small, MaskKind::large, MaskKind::random};
constexpr DType kDTypes[] = {DType::F32, DType::F16, DType::BF16, DType::BF16T8, DType::NF4, DType::I8};
constexpr OperandMode kModes[] = {OperandMode::nearest, OperandMode::dither, OperandMode::split};
constexpr int64_t kCols[] = {1, 3, 16, 20, 576, 640, 1000};
TensorDirection make_direction(std::mt19937& random, NoiseKind noise, MaskKind mask, uint32_t tensor_id) {
  TensorDirection d;
  d.noise = noise;
  d.mask.kind = mask;
  d.mask.h = random() % 8 ? 0.015f : random() % 2 ? 0.0f : INFINITY;
  d.mask.keep = random() % 4 ? random() % 65537 : random() % 2 ? 0 : 65536;
  d.stream = {static_cast<uint64_t>(random()) << 32 | random(), static_cast<uint32_t>(random()),
              below(random, kMaxQuery + 1), Purpose::direction, tensor_id};
  return d;
}

std::vector<Table> vector_tables() {
  std::vector<Table> tables = smezo_test::tables_but_products();
  tables.erase(tables.begin());  // scalar
  return tables;
}

// A strip of guarded memory, filled with a pattern.
struct Strip {
  std::vector<uint8_t> bytes;
  int64_t size, ld, n_rows;
  Strip(int64_t size, int64_t ld, int64_t n_rows)
      : bytes(static_cast<size_t>((ld * n_rows + kGuard) * size + 64), 0xCD),
        size(size),
        ld(ld),
        n_rows(n_rows) {}
  void* data() {
    const uintptr_t p = reinterpret_cast<uintptr_t>(bytes.data());
    return reinterpret_cast<void*>((p + 63) / 64 * 64);
  }
  uint32_t bits(int64_t row, int64_t col) {  // as fp32 bits
    const int64_t i = row * ld + col;
    return size == 2 ? static_cast<uint32_t>(static_cast<uint16_t*>(data())[i]) << 16
                     : static_cast<uint32_t*>(data())[i];
  }
  bool guard_intact() {
    const uint8_t* end = static_cast<uint8_t*>(data()) + ld * n_rows * size;
    return std::all_of(end, end + kGuard * size - 64, [](uint8_t b) { return b == 0xCD; });
  }
};

// Elements that differ from the definition, padding that is not zero, guards that were written.
// view: as the kernel sees job's weight.
int64_t produce_errors(const Kernels& k, const OperandJob& job, const WeightView& view, int64_t row0,
                       int64_t n_rows, bool want_plus, bool want_minus) {
  const int64_t size = k.operand_dtype(job.compute) == DType::BF16 ? 2 : 4,
                ld = k.operand_ld(job.compute, job.w.cols);
  Strip plus(size, ld, n_rows), minus(size, ld, n_rows);
  OperandJob seen = job;
  seen.w = view;
  k.produce(seen, row0, n_rows, want_plus ? plus.data() : nullptr, want_minus ? minus.data() : nullptr);
  int64_t errors = !plus.guard_intact() + !minus.guard_intact();
  for (int64_t row = 0; row < n_rows; ++row) {
    for (int64_t col = 0; col < ld; ++col) {
      const Operands o =
          col < job.w.cols ? operands_at(job, (row0 + row) * job.w.cols + col) : Operands{0, 0};
      if (want_plus) errors += plus.bits(row, col) != f32_bits(o.plus);
      if (want_minus && job.eps != 0) errors += minus.bits(row, col) != f32_bits(o.minus);
    }
  }
  return errors;
}
}  // namespace

TEST(operands_are_the_definition_bit_for_bit) {
  for (const Table& table : vector_tables()) {
    const Kernels& k = *table.kernels;
    std::mt19937 random(1);
    for (int64_t cols : kCols) {
      const int64_t rows = 12 + (cols < 100 ? 2500 / cols : 0);
      for (DType dtype : kDTypes) {
        Tensor t = make_tensor(random, dtype, rows, cols);
        for (NoiseKind noise : kNoises) {
          for (MaskKind mask : kMasks) {
            for (OperandMode mode : kModes) {
              for (Compute compute : {Compute::f32, Compute::bf16}) {
                OperandJob job{t.view, make_direction(random, noise, mask, t.view.tensor_id), mode, compute,
                               0};
                job.eps = random() % 12 == 0 ? 0.0f : random() % 2 ? 1e-3f : 0.37f;
                const int64_t n_rows =
                    1 + random() % std::min<int64_t>(rows - 1, std::max<int64_t>(1, 2300 / cols));
                const int64_t row0 = random() % (rows - n_rows + 1);
                const bool only_one = random() % 6 == 0, which = random() % 2;
                Tensor part;
                const bool whole = random() % 2;
                if (!whole)
                  part = part_of(t, some_first(random, t.view, row0 * cols),
                                 some_end(random, t.view, (row0 + n_rows) * cols));
                const int64_t errors = produce_errors(k, job, whole ? t.view : part.view, row0, n_rows,
                                                      !only_one || which, !only_one || !which);
                CHECK(errors == 0);
                if (errors != 0)
                  std::printf(
                      "    %s cols %lld dtype %s first %lld noise %d mask %d mode %d compute %d eps %g: %lld "
                      "wrong\n",
                      table.name.c_str(), static_cast<long long>(cols), dtype_name(dtype),
                      static_cast<long long>(part.view.first), static_cast<int>(noise),
                      static_cast<int>(mask), static_cast<int>(mode), static_cast<int>(compute),
                      static_cast<double>(job.eps), static_cast<long long>(errors));
              }
            }
          }
        }
      }
    }
  }
}

TEST(plain_operands_are_the_definition_for_every_bf16_pattern) {
  for (const Table& table : vector_tables()) {
    for (DType dtype : {DType::BF16, DType::F16, DType::BF16T8}) {
      Tensor t;
      t.data.resize(32768);
      t.tail.resize(65536);
      for (int i = 0; i < 65536; ++i) {
        reinterpret_cast<uint16_t*>(t.data.data())[i] = static_cast<uint16_t>(i);
        t.tail[static_cast<size_t>(i)] = static_cast<int8_t>(i * 37);
      }
      t.view.dtype = dtype;
      t.view.rows = 64;
      t.view.cols = 1024;
      t.point_to_own();
      OperandJob job{t.view, {}, OperandMode::nearest, Compute::bf16, 0};
      CHECK(produce_errors(*table.kernels, job, t.view, 0, 64, true, true) == 0);
      job.compute = Compute::f32;
      CHECK(produce_errors(*table.kernels, job, t.view, 0, 64, true, true) == 0);
    }
  }
}

// Rows as long as the models' too, so that blocks lie whole in a row, and rows in a block.
TEST(plain_operands_of_quantized_weights_are_the_definition) {
  constexpr int64_t kLong[] = {1, 31, 64, 1000, 2080, 4096, 4100};
  for (const Table& table : vector_tables()) {
    std::mt19937 random(6);
    for (DType dtype : {DType::NF4, DType::I8}) {
      for (int i = 0; i < 150; ++i) {
        const int64_t cols = kLong[below(random, std::size(kLong))], rows = 2 + below(random, 16000) / cols;
        const Tensor t = make_tensor(random, dtype, rows, cols);
        const int64_t n_rows = 1 + random() % rows, row0 = random() % (rows - n_rows + 1);
        const Tensor part = part_of(t, some_first(random, t.view, row0 * cols),
                                    some_end(random, t.view, (row0 + n_rows) * cols));
        const OperandJob job{
            t.view, {}, OperandMode::nearest, random() % 3 ? Compute::bf16 : Compute::f32, 0};
        const int64_t errors =
            produce_errors(*table.kernels, job, random() % 2 ? part.view : t.view, row0, n_rows, true, false);
        CHECK(errors == 0);
        if (errors != 0)
          std::printf("    %s dtype %s cols %lld row0 %lld n_rows %lld block %d compute %d: %lld wrong\n",
                      table.name.c_str(), dtype_name(dtype), static_cast<long long>(cols),
                      static_cast<long long>(row0), static_cast<long long>(n_rows), t.view.scales.block,
                      static_cast<int>(job.compute), static_cast<long long>(errors));
      }
    }
  }
}

TEST(updates_are_the_definition_bit_for_bit) {
  for (const Table& table : vector_tables()) {
    std::mt19937 random(2);
    for (int64_t cols : kCols) {
      const int64_t rows = 4 + (cols < 100 ? 2500 / cols : 0);
      for (DType dtype : {DType::F32, DType::BF16, DType::BF16T8}) {
        for (NoiseKind noise : kNoises) {
          for (MaskKind mask : kMasks) {
            Tensor t = make_tensor(random, dtype, rows, cols);
            const float c[] = {1e-4f, -0.3f, 1e-6f, 0.0f, 2.5f};
            UpdateJob job{t.view, make_direction(random, noise, mask, t.view.tensor_id), 0, 1, c};
            job.decay = random() % 2 ? 0.0f : 0.01f;
            job.n_queries = random() % 2 ? 1 : static_cast<int>(random() % 6);
            const int64_t n_rows = 1 + random() % rows, row0 = random() % (rows - n_rows + 1);
            Tensor want = t;
            want.point_to_own();
            UpdateJob expected = job;
            expected.w = want.view;
            const bool whole = random() % 2;
            const int64_t first = whole ? 0 : some_first(random, t.view, row0 * cols);
            const int64_t end = some_end(random, t.view, (row0 + n_rows) * cols);
            if (!whole) {
              t = part_of(t, first, end);
              t.point_to_own();
              job.w = t.view;
            }
            for (int64_t e = row0 * cols; e < (row0 + n_rows) * cols; ++e) update_at(expected, e, row0);
            if (!whole) want = part_of(want, first, end);
            table.kernels->apply_update(job, row0, n_rows);
            CHECK(t == want);  // the rows around the range and the guards too
            if (!(t == want))
              std::printf("    %s cols %lld dtype %s first %lld noise %d mask %d queries %d decay %g\n",
                          table.name.c_str(), static_cast<long long>(cols), dtype_name(dtype),
                          static_cast<long long>(first), static_cast<int>(noise), static_cast<int>(mask),
                          job.n_queries, static_cast<double>(job.decay));
          }
        }
      }
    }
  }
}

// Rules that average, with moments that are kept and with such that are rebuilt, and what a caller gives.
TEST(rules_are_the_definition_bit_for_bit) {
  constexpr RuleKind kRules[] = {RuleKind::momentum, RuleKind::adam, RuleKind::sign, RuleKind::hizoo};
  for (const Table& table : vector_tables()) {
    std::mt19937 random(7);
    std::uniform_real_distribution<float> uniform(0.1f, 2.0f);
    for (int64_t cols : kCols) {
      const int64_t rows = 4 + (cols < 100 ? 2500 / cols : 0);
      for (DType dtype : {DType::F32, DType::BF16, DType::BF16T8}) {
        for (MaskKind mask : kMasks) {
          for (RuleKind kind : kRules) {
            Tensor t = make_tensor(random, dtype, rows, cols);
            const NoiseKind noise = kNoises[random() % std::size(kNoises)];
            const float c[] = {1e-4f, -0.3f, 1e-6f, 0.0f, 2.5f};
            UpdateJob job{t.view, make_direction(random, noise, mask, t.view.tensor_id), 0, 1, c};
            job.decay = random() % 2 ? 0.0f : 0.01f;
            job.n_queries = 1 + static_cast<int>(random() % 5);
            job.rule = {kind, 0.02f, 0.9f, 0.1f, 0.99f, 0.01f, 1.5f, 1e-6f};
            const int64_t n_rows = 1 + random() % rows, row0 = random() % (rows - n_rows + 1);
            const bool kept = kind == RuleKind::hizoo || random() % 2;
            std::vector<float> moments(static_cast<size_t>(2 * rows * cols));
            for (float& x : moments) x = uniform(random);
            std::vector<float> other = moments;
            const PastRecord past[] = {{3, c}, {9, c + 2}};
            if (!kept) job.past = past, job.n_past = static_cast<int>(random() % 2) + 1, job.n_queries = 2;
            Tensor want = t;
            want.point_to_own();
            UpdateJob expected = job;
            expected.w = want.view;
            for (int k = 0; kept && k < n_moments(kind); ++k) {
              job.moments[k] = moments.data() + k * rows * cols;
              expected.moments[k] = other.data() + k * rows * cols;
            }
            for (int64_t e = row0 * cols; e < (row0 + n_rows) * cols; ++e) update_at(expected, e, row0);
            table.kernels->apply_update(job, row0, n_rows);
            CHECK(t == want);
            CHECK(std::memcmp(moments.data(), other.data(), moments.size() * sizeof(float)) == 0);
          }
          Tensor t = make_tensor(random, dtype, rows, cols);
          const int64_t n_rows = 1 + random() % rows, row0 = random() % (rows - n_rows + 1),
                        ld = random() % 2 ? cols : cols + 7;
          std::vector<float> given(static_cast<size_t>(n_rows * ld) + kLanes);
          for (float& x : given) x = uniform(random);
          const float one = 1;
          UpdateJob job{t.view, make_direction(random, NoiseKind::gaussian8, mask, t.view.tensor_id), 0, 1,
                        &one};
          job.given = given.data(), job.ld_given = ld;
          Tensor want = t;
          want.point_to_own();
          UpdateJob expected = job;
          expected.w = want.view;
          for (int64_t e = row0 * cols; e < (row0 + n_rows) * cols; ++e) update_at(expected, e, row0);
          table.kernels->apply_update(job, row0, n_rows);
          CHECK(t == want);
        }
      }
    }
  }
}

TEST(decode_is_the_definition_for_every_pattern) {
  for (const Table& table : vector_tables()) {
    for (DType dtype : {DType::F32, DType::F16, DType::BF16, DType::BF16T8}) {
      std::vector<uint32_t> data(65536 + 3);
      std::vector<int8_t> tail(65536 + 3);
      std::mt19937 random(3);
      for (size_t i = 0; i < data.size(); ++i) {
        if (dtype == DType::F32)
          data[i] = random();
        else
          reinterpret_cast<uint16_t*>(data.data())[i] = static_cast<uint16_t>(i);
        tail[i] = static_cast<int8_t>(random());
      }
      WeightView w;
      w.data = data.data();
      w.tail = tail.data();
      w.dtype = dtype;
      w.rows = 1;
      w.cols = 65536 + 3;
      std::vector<float> out(65536 + 3, -7.0f);
      table.kernels->decode(w, 1, 65536 + 1, out.data());
      int64_t errors = 0;
      for (int64_t i = 0; i < 65536 + 1; ++i)
        errors += f32_bits(out[static_cast<size_t>(i)]) != f32_bits(decode_at(w, i + 1));
      CHECK(errors == 0);
      CHECK(out[65536 + 1] == -7.0f);
    }
  }
}

TEST(decode_is_the_definition_at_ragged_places_of_parts) {
  for (const Table& table : vector_tables()) {
    std::mt19937 random(5);
    for (DType dtype : kDTypes) {
      for (int i = 0; i < 200; ++i) {
        const int64_t cols = kCols[below(random, std::size(kCols))], rows = 1 + below(random, 12000) / cols;
        const Tensor t = make_tensor(random, dtype, rows, cols);
        const int64_t e0 = below(random, static_cast<uint32_t>(rows * cols));
        const int64_t n = 1 + below(random, static_cast<uint32_t>(rows * cols - e0));
        const Tensor part = part_of(t, some_first(random, t.view, e0), some_end(random, t.view, e0 + n));
        std::vector<float> out(static_cast<size_t>(n) + 1, -7.0f);
        table.kernels->decode(random() % 2 ? part.view : t.view, e0, n, out.data());
        int64_t errors = out[static_cast<size_t>(n)] != -7.0f;
        for (int64_t e = 0; e < n; ++e)
          errors += f32_bits(out[static_cast<size_t>(e)]) != f32_bits(decode_at(t.view, e0 + e));
        CHECK(errors == 0);
        if (errors != 0)
          std::printf("    %s dtype %s cols %lld e0 %lld n %lld block %d: %lld wrong\n", table.name.c_str(),
                      dtype_name(dtype), static_cast<long long>(cols), static_cast<long long>(e0),
                      static_cast<long long>(n), t.view.scales.block, static_cast<long long>(errors));
      }
    }
  }
}

TEST(noise_is_the_definition_at_ragged_and_far_places) {
  for (const Table& table : vector_tables()) {
    std::mt19937 random(4);
    const int64_t far[] = {0,
                           2040,
                           int64_t{1} << 32,
                           (int64_t{1} << 36) - 100,
                           (int64_t{1} << 40) + 777,
                           (int64_t{1} << 41) + 5};
    for (NoiseKind kind : kNoises) {
      for (int64_t at : far) {
        for (int i = 0; i < 6; ++i) {
          const TensorDirection d =
              make_direction(random, kind, MaskKind::all, below(random, kMaxTensorId + 1));
          const int64_t e0 = at + random() % 4100, n = 1 + random() % 5000;
          std::vector<float> out(static_cast<size_t>(n) + 1, -7.0f);
          table.kernels->noise(d, e0, n, out.data());
          int64_t errors = 0;
          for (int64_t e = 0; e < n; ++e)
            errors +=
                f32_bits(out[static_cast<size_t>(e)]) != f32_bits(z_at(d, static_cast<uint64_t>(e0 + e)));
          CHECK(errors == 0);
          CHECK(out[static_cast<size_t>(n)] == -7.0f);
        }
      }
    }
  }
}

TEST_MAIN()
