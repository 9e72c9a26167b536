// Programs of csrc/cuda on the host: every thread block of a launch, its threads one after the other between barriers.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "cuda/device.h"

namespace hyenarec::cuda {

// One thread block. In which order a phase's threads run may not change results; thread_machine.h has them run at once.
struct HostBlock {
  int threads;
  bool reversed;

  template <class F>
  void phase(const F& f) {
    for (int i = 0; i < threads; ++i) f(reversed ? threads - 1 - i : i);
  }
};

struct HostMachine {
  bool reversed;
  template <class Program>
  void start(const Program& program, int64_t grid) {
    std::vector<Complex> shared(Program::kSharedBytes / sizeof(Complex) + 1);
    for (int64_t i = 0; i < grid; ++i) {
      std::fill(shared.begin(), shared.end(), Complex{NAN, NAN});
      HostBlock block{Program::kThreads, reversed};
      program(block, reversed ? grid - 1 - i : i, shared.data());
    }
  }
};

}  // namespace hyenarec::cuda
