// The bodies of the CUDA kernels, run on the host block by block, against the CPU kernels: equal bits for
// every format, noise, mask and mode, for whole weights and ranges of rows, whatever the grid and the order
// of threads. The scalar set is the oracle for all; the best set of this machine is compared too.
#include "base/error.h"
#include "cuda_cases.h"
#include "kernels/cuda/host_launch.h"
#include "test.h"

namespace {
using namespace smezo;
using namespace cuda_cases;

constexpr int kRounds = 6;
constexpr uint8_t kUnwritten = 0xA7;

// The sets to compare with.
std::vector<const Kernels*> sets() {
  std::vector<const Kernels*> all = {&kernels_for(Isa::scalar)};
  const Isa best = choose_isa();
  if (best != Isa::scalar) all.push_back(&kernels_for(best));
  return all;
}

template <class Job>
void launch(Random& random, const Job& job) {
  cuda::host_launch(random_grid(random, job.range), job, one_in(random, 2));
}

// A strip of an exact size, perhaps at an odd address, and what may not be written before it.
struct Strip {
  std::vector<uint8_t> bytes;
  int64_t size, skip;
  Strip(Random& random, int64_t size, int64_t n)
      : size(size), skip(one_in(random, 4) ? size * (1 + below(random, 7)) : 0) {
    bytes.resize(static_cast<size_t>(n * size + skip), kUnwritten);
  }
  void* data() { return bytes.data() + skip; }
  uint32_t bits(int64_t i) {  // as fp32 bits
    uint32_t u = 0;
    memcpy(reinterpret_cast<uint8_t*>(&u) + (4 - size), bytes.data() + skip + i * size,
           static_cast<size_t>(size));
    return u;
  }
};

struct Errors {
  int64_t compared = 0, wrong = 0;
  void add(bool equal) {
    ++compared;
    wrong += !equal;
  }
};

// Strip `got`, [n_rows][ld], against what a CPU set makes of the same job: its plus or minus strip.
void compare(const Kernels& k, const OperandJob& job, const Case& c, int64_t ld, Strip& got, bool minus,
             Errors& errors) {
  const int64_t size = k.operand_dtype(job.compute) == DType::BF16 ? 2 : 4,
                cpu_ld = k.operand_ld(job.compute, job.w.cols);
  std::vector<uint8_t> strip(static_cast<size_t>(c.n_rows * cpu_ld * size + kStripAlign));
  const auto at = (reinterpret_cast<uintptr_t>(strip.data()) + kStripAlign - 1) / kStripAlign * kStripAlign;
  auto* want = reinterpret_cast<uint8_t*>(at);
  k.produce(job, c.row0, c.n_rows, minus ? nullptr : want, minus ? want : nullptr);
  for (int64_t row = 0; row < c.n_rows; ++row) {
    for (int64_t col = 0; col < ld; ++col) {
      uint32_t u = 0;
      if (col < job.w.cols)
        memcpy(reinterpret_cast<uint8_t*>(&u) + (4 - size), want + (row * cpu_ld + col) * size,
               static_cast<size_t>(size));
      errors.add(got.bits(row * ld + col) == u);
    }
  }
}

// All branches of a job at once, some of them unwanted.
Errors produce_errors(Random& random, Case& c, const OperandJob& job) {
  const bool plain_only = job.eps == 0, split = job.mode == OperandMode::split;
  cuda::Branches out;
  out.ld = random_ld(random, job.w.cols);
  out.n_queries = plain_only ? 0 : static_cast<int>(below(random, 4));
  const int64_t size = job.compute == Compute::bf16 ? 2 : 4, n = c.n_rows * out.ld;
  std::vector<Strip> strips;
  for (int i = 0; i < 1 + 2 * out.n_queries; ++i) strips.emplace_back(random, size, n);
  const auto wanted = [&](Strip& s) { return one_in(random, 6) ? nullptr : s.data(); };
  out.plain = plain_only ? strips[0].data() : wanted(strips[0]);
  for (int q = 0; q < out.n_queries; ++q) {
    out.plus[q] = split ? nullptr : wanted(strips[static_cast<size_t>(1 + 2 * q)]);
    out.minus[q] = wanted(strips[static_cast<size_t>(2 + 2 * q)]);
  }
  launch(random, cuda::produce_job(job, c.row0, c.n_rows, out));

  Errors errors;
  for (const Kernels* k : sets()) {
    OperandJob one = job;
    if (out.plain) {
      one.eps = 0;
      compare(*k, one, c, out.ld, strips[0], false, errors);
      one.eps = job.eps;
    }
    for (int q = 0; q < out.n_queries; ++q) {
      one.dir.stream.query = job.dir.stream.query + static_cast<uint32_t>(q);
      if (out.plus[q]) compare(*k, one, c, out.ld, strips[static_cast<size_t>(1 + 2 * q)], false, errors);
      if (out.minus[q]) compare(*k, one, c, out.ld, strips[static_cast<size_t>(2 + 2 * q)], true, errors);
    }
  }
  for (Strip& s : strips) {  // unwanted strips, and what lies before each
    const bool used = s.data() == out.plain || std::count(out.plus, std::end(out.plus), s.data()) > 0 ||
                      std::count(out.minus, std::end(out.minus), s.data()) > 0;
    const auto end = used ? s.bytes.begin() + s.skip : s.bytes.end();
    errors.add(std::all_of(s.bytes.begin(), end, [](uint8_t b) { return b == kUnwritten; }));
  }
  return errors;
}

void report(const Errors& e, const Case& c) {
  CHECK(e.wrong == 0);
  if (e.wrong != 0)
    std::printf("    %s [%lld, %lld] first %lld rows %lld + %lld noise %d mask %d: %lld of %lld wrong\n",
                dtype_name(c.w.shape.dtype), static_cast<long long>(c.w.shape.rows),
                static_cast<long long>(c.w.shape.cols), static_cast<long long>(c.w.shape.first),
                static_cast<long long>(c.row0), static_cast<long long>(c.n_rows),
                static_cast<int>(c.dir.noise), static_cast<int>(c.dir.mask.kind),
                static_cast<long long>(e.wrong), static_cast<long long>(e.compared));
}

// body(random, dtype, noise, mask) for all of them, several times.
template <size_t n, class Body>
int64_t for_all(const DType (&dtypes)[n], uint32_t seed, Body&& body) {
  Random random(seed);
  int64_t compared = 0;
  for (int round = 0; round < kRounds; ++round) {
    for (DType dtype : dtypes) {
      for (NoiseKind noise : kNoises) {
        for (MaskKind mask : kMasks) {
          Case c = make_case(random, dtype, noise, mask);
          const Errors e = body(random, c);
          report(e, c);
          compared += e.compared;
        }
      }
    }
  }
  return compared;
}
}  // namespace

TEST(operands_of_all_branches_equal_the_cpu_kernels) {
  const int64_t compared = for_all(kDTypes, 1, [](Random& random, Case& c) {
    Errors all;
    for (OperandMode mode : kModes) {
      for (Compute compute : {Compute::f32, Compute::bf16}) {
        const Errors e = produce_errors(random, c, make_operand_job(random, c, mode, compute));
        all.compared += e.compared;
        all.wrong += e.wrong;
      }
    }
    return all;
  });
  CHECK(compared > 10'000'000);
}

TEST(updates_equal_the_cpu_kernels) {
  int64_t moved = 0;
  for_all(kTrained, 2, [&](Random& random, Case& c) {
    std::vector<float> coefficients(kMaxQueries);
    for (float& x : coefficients)
      x = one_in(random, 8) ? 0.0f : 1e-3f * (static_cast<float>(below(random, 200)) - 100);
    UpdateJob job{c.w.view(), c.dir, 0, 1, coefficients.data()};
    job.decay = one_in(random, 2) ? 0.0f : 0.01f;
    job.n_queries = one_in(random, 2)    ? 1
                    : one_in(random, 10) ? kMaxQueries
                                         : static_cast<int>(below(random, 6));
    const Stored before = c.w;
    launch(random, cuda::record_job(job, c.row0, c.n_rows));
    Errors errors;
    for (const Kernels* k : sets()) {
      Stored want = before;
      job.w = want.view();
      k->apply_update(job, c.row0, c.n_rows);
      errors.add(c.w == want);  // the other rows and what lies around too
    }
    moved += !(c.w == before);
    return errors;
  });
  CHECK(moved > kRounds * 20);
}

TEST(decoded_weights_equal_the_cpu_kernels) {
  for_all(kDTypes, 3, [](Random& random, Case& c) {
    const WeightView w = c.w.view();
    const int64_t e0 = w.first + below(random, w.n() - w.first), n = 1 + below(random, w.n() - e0);
    Strip got(random, 4, n);
    launch(random, cuda::decode_job(w, e0, n, static_cast<float*>(got.data())));
    Errors errors;
    for (const Kernels* k : sets()) {
      std::vector<float> want(static_cast<size_t>(n));
      k->decode(w, e0, n, want.data());
      for (int64_t i = 0; i < n; ++i) errors.add(got.bits(i) == f32_bits(want[static_cast<size_t>(i)]));
    }
    return errors;
  });
}

TEST(masks_are_the_definition) {
  int64_t in = 0;
  const int64_t compared = for_all(kDTypes, 4, [&](Random& random, Case& c) {
    const WeightView w = c.w.view();
    const int64_t e0 = w.first + below(random, w.n() - w.first), n = 1 + below(random, w.n() - e0);
    std::vector<uint8_t> got(static_cast<size_t>(n) + 8, kUnwritten);
    const int64_t skip = one_in(random, 4) ? 3 : 0;
    launch(random, cuda::mask_job(w, c.dir, e0, n, got.data() + skip));
    Errors errors;
    for (int64_t i = 0; i < static_cast<int64_t>(got.size()); ++i) {
      const int64_t e = e0 + i - skip;
      const bool inside = i >= skip && i < skip + n;
      const bool selected = inside && mask_at(c.dir, static_cast<uint64_t>(e), decode_at(w, e));
      errors.add(got[static_cast<size_t>(i)] == (inside ? selected : kUnwritten));
      in += selected;
    }
    return errors;
  });
  CHECK(in > compared / 10 && in < compared - compared / 10);
}

TEST(noise_equals_the_cpu_kernels_at_ragged_and_far_places) {
  Random random(5);
  const Kernels &scalar = kernels_for(Isa::scalar), &best = kernels_for(choose_isa());
  const int64_t far[] = {0, 2040, int64_t{1} << 32, (int64_t{1} << 36) - 100, (int64_t{1} << 41) + 5};
  for (NoiseKind kind : kNoises) {
    for (int64_t at : far) {
      for (int i = 0; i < kRounds; ++i) {
        const TensorDirection d =
            make_direction(random, kind, MaskKind::all, below(random, kMaxTensorId + 1));
        const int64_t e0 = one_in(random, 3) ? at / 8 * 8 : at + below(random, 4100),
                      n = 1 + below(random, 9000);
        Strip got(random, 4, n);
        launch(random, cuda::noise_job(d, e0, n, static_cast<float*>(got.data())));
        std::vector<float> want(static_cast<size_t>(n));
        Errors errors;
        for (const Kernels* k : {&scalar, &best}) {
          k->noise(d, e0, n, want.data());
          for (int64_t e = 0; e < n; ++e) errors.add(got.bits(e) == f32_bits(want[static_cast<size_t>(e)]));
        }
        CHECK(errors.wrong == 0);
      }
    }
  }
}

TEST(nothing_is_done_for_nothing) {
  Random random(6);
  Case c = make_case(random, DType::F32, NoiseKind::gaussian8, MaskKind::all);
  CHECK(cuda::n_windows(cuda::decode_job(c.w.view(), 5, 0, nullptr).range) == 0);
  CHECK(cuda::n_windows(cuda::range_of(2047, 1, false)) == 1);
  CHECK(cuda::n_windows(cuda::range_of(2047, 2, false)) == 2);
}

TEST(jobs_that_cannot_be_are_refused) {
  Random random(7);
  Case c = make_case(random, DType::BF16, NoiseKind::gaussian8, MaskKind::all);
  float coefficient = 1;
  UpdateJob update{c.w.view(), c.dir, 0, 1, &coefficient};
  update.w.writable = false;
  CHECK_THROWS(ArgumentError, "[update] tensor", cuda::record_job(update, 0, 1));
  update.w.writable = true;
  update.w.dtype = DType::F16;
  CHECK_THROWS(ArgumentError, "F16", cuda::record_job(update, 0, 1));
  update.w.dtype = DType::BF16;
  update.n_queries = kMaxQueries + 1;
  CHECK_THROWS(ArgumentError, "129 queries", cuda::record_job(update, 0, 1));

  char strip;
  OperandJob job{c.w.view(), c.dir, OperandMode::split, Compute::bf16, 1e-3f};
  cuda::Branches out{job.w.cols, &strip, 1, {&strip}, {}};
  CHECK_THROWS(ArgumentError, "split mode", cuda::produce_job(job, 0, 1, out));
  job.mode = OperandMode::nearest;
  cuda::produce_job(job, 0, 1, out);
  out.ld = job.w.cols - 1;
  CHECK_THROWS(ArgumentError, "expected at least", cuda::produce_job(job, 0, 1, out));
  out.ld = job.w.cols;
  job.eps = 0;
  CHECK_THROWS(ArgumentError, "expected 0..0", cuda::produce_job(job, 0, 1, out));
}

// This program is linked with none.cpp.
TEST(without_cuda_every_verb_says_so) {
  Random random(8);
  Case c = make_case(random, DType::BF16, NoiseKind::gaussian8, MaskKind::all);
  const WeightView w = c.w.view();
  CHECK_THROWS(ArgumentError, "[device]", cuda::noise(c.dir, 0, 1, nullptr, nullptr));
  CHECK_THROWS(ArgumentError, "[device]", cuda::mask(w, c.dir, 0, 1, nullptr, nullptr));
  CHECK_THROWS(ArgumentError, "[device]", cuda::decode(w, 0, 1, nullptr, nullptr));
  CHECK_THROWS(ArgumentError, "[device]", cuda::produce({}, 0, 1, {}, nullptr));
  CHECK_THROWS(ArgumentError, "[device]", cuda::apply_update({}, 0, 1, nullptr));
}

TEST_MAIN()
