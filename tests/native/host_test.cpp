// The shipped programs and schedule on the host, for tests: every thread block of every launch, its threads one after
// the other between barriers. tests/kernels/test_cuda_host.py compiles this into libraries: HYENAREC_TOP is log2 of the
// largest block; small blocks meet filters in parts, and shares of several items, in small calls.
#include <vector>

#include "cuda/schedule.h"
#include "emulation.h"

namespace {

using namespace hyenarec;
using namespace hyenarec::cuda;

constexpr int kTop = HYENAREC_TOP;
constexpr int64_t kShareElements = kTop == kLargest ? kWave : 4096;

// One thread block. In which order a phase's threads run may not change results; race_test.cpp has them run at once.
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
    if (emulated(program, grid)) return;
    std::vector<Complex> shared(Program::kSharedBytes / sizeof(Complex) + 1);
    for (int64_t i = 0; i < grid; ++i) {
      std::fill(shared.begin(), shared.end(), Complex{NAN, NAN});
      HostBlock block{Program::kThreads, reversed};
      program(block, reversed ? grid - 1 - i : i, shared.data());
    }
  }
};

struct Counter {
  int launches = 0;
  template <class Program>
  void start(const Program&, int64_t grid) {
    launches += grid > 0;
  }
};

template <class Machine>
int64_t run(const LongConvArgs& args, bool backward, Machine&& machine) {
  Schedule<std::remove_reference_t<Machine>, kTop, kShareElements> schedule(args, machine);
  backward ? schedule.backward() : schedule.forward();
  return schedule.workspace();
}

// Most accesses to one bank by the 16 threads that are served together, over all passes.
template <int kLog>
int bank_conflicts() {
  using S = Size<kLog>;
  int worst = 0;
  auto pass = [&](auto radix, auto length) {
    using Pass = Butterfly<S, decltype(radix)::value, decltype(length)::value>;
    for (int i = 0; i < S::kElements / radix.value; i += 16)
      for (int j = 0; j < radix.value; ++j) {
        int hits[16] = {};
        for (int lane = 0; lane < 16; ++lane)
          worst = std::max(worst, ++hits[(Pass(i + lane).place() + j * Pass::kStep) % 16]);
      }
  };
  each<S::kOuterPasses>([&](auto index) {
    constexpr int p = decltype(index)::value;
    pass(Index<1 << S::outer(p)>{}, Index<(p == 0 ? S::kPoints : S::kPoints >> S::outer(0))>{});
  });
  pass(Index<S::kInner>{}, Index<S::kInner>{});
  return worst;
}

}  // namespace

extern "C" {

int64_t args_size() { return sizeof(LongConvArgs); }

int64_t host_workspace(const LongConvArgs* args, bool backward) { return run(*args, backward, DryRun{}); }

void host_run(const LongConvArgs* args, bool backward, bool reversed) { run(*args, backward, HostMachine{reversed}); }

int host_launches(const LongConvArgs* args, bool backward) {
  Counter counter;
  run(*args, backward, counter);
  return counter.launches;
}

int host_bank_conflicts(int log) {
  int worst = 0;
  with_size<kSmallest, kTop>(log, [&](auto size) { worst = bank_conflicts<decltype(size)::value>(); });
  return worst;
}

}  // extern "C"
