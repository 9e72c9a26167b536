// Runs programs of csrc/cuda on the host: all thread blocks of a launch in turn, the threads of a block one after the
// other between barriers.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "cuda/tensor_core.h"
#include "emulation.h"

#ifndef HYENAREC_SHARED  // the shared memory of a block
#define HYENAREC_SHARED (227 << 10)
#endif

namespace hyenarec::cuda {

// One thread block. The order in which a phase's threads run must not change results; thread_machine.h runs them at
// once.
struct HostBlock {
  int threads;
  bool reversed;

  template <class F>
  void phase(const F& f) {
    for (int i = 0; i < threads; ++i) f(reversed ? threads - 1 - i : i);
  }
  template <class F>
  void warps(const F& f) {
    for (int i = 0, count = threads / 32; i < count; ++i) f(Warp{reversed ? count - 1 - i : i, 0});
  }
};

struct HostMachine {
  bool reversed;
  template <class Program>
  void start(const Program& program, int64_t grid) {
    if (emulated(program, grid, int(shared_bytes(program)))) return;
    std::vector<Complex> shared(shared_bytes(program) / sizeof(Complex) + 1);
    for (int64_t i = 0; i < grid; ++i) {
      std::fill(shared.begin(), shared.end(), Complex{NAN, NAN});
      HostBlock block{Program::kThreads, reversed};
      program(block, reversed ? grid - 1 - i : i, shared.data());
    }
  }
};

}  // namespace hyenarec::cuda
