// Runs a kernel's body on the host, for every block of a grid, with the bits that a device would give. For
// tests and for comparing a device with; a CPU has its own kernels (kernels/cpu).
#pragma once
#include <memory>

#include "kernels/cuda/body.h"

namespace smezo::cuda {

struct HostBlock {
  static constexpr int kStates = kThreads;
  Shared& shared;
  bool backwards;
};

// SMEZO_HD only because nvcc wants what a body calls to be so.
template <class Phase>
SMEZO_HD void each(HostBlock& block, const Phase& phase) {
  for (int i = 0; i < kThreads; ++i) phase(block.backwards ? kThreads - 1 - i : i);
}

// backwards: threads of a block run in the opposite order, which may not change a bit. What is in shared
// memory when a block begins is a pattern that no kernel wrote.
template <class Job>
void host_launch(int64_t grid, const Job& job, bool backwards = false) {
  const auto shared = std::make_unique<Shared>();
  for (int64_t index = 0; index < grid; ++index) {
    memset(static_cast<void*>(shared.get()), 0xCD, sizeof(Shared));
    HostBlock block{*shared, backwards};
    run(block, index, grid, job);
  }
}

}  // namespace smezo::cuda
