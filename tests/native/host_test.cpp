// The shipped programs and schedule on the host, for tests: all thread blocks of every launch, the threads of a block
// one after the other between barriers. tests/kernels/cuda_host.py compiles this into a library, whose functions take
// log2 of the largest block as `top`: 14, 10 or 7, at most HYENAREC_TOP. With small blocks even small calls cut filters
// into parts and give a block several items.
#include <vector>

#include "cuda/schedule.h"
#include "host_machine.h"

namespace {

using namespace hyenarec;
using namespace hyenarec::cuda;

constexpr int kTops[] = {kLargest, kScarce, HYENAREC_TOP < 7 ? HYENAREC_TOP : 7};

struct Counter {
  int launches = 0;
  template <class Program>
  void start(const Program&, int64_t grid) {
    launches += grid > 0;
  }
};

template <class Machine>
int64_t run(const LongConvArgs& args, int top, bool backward, Machine&& machine) {
  int64_t workspace = -1;
  each<std::size(kTops)>([&](auto index) {
    constexpr int kTop = kTops[decltype(index)::value];
    if constexpr (kTop <= HYENAREC_TOP) {
      if (kTop != top) return;
      Schedule<std::remove_reference_t<Machine>, kTop, kTop == kLargest ? kWave : 4096> schedule(args, machine);
      backward ? schedule.backward() : schedule.forward();
      workspace = schedule.workspace();
    }
  });
  return workspace;
}

// The most accesses to one bank by the 16 threads that are served together, over all passes.
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

int64_t host_workspace(const LongConvArgs* args, int top, bool backward) {
  return run(*args, top, backward, DryRun{});
}

void host_run(const LongConvArgs* args, int top, bool backward, bool reversed) {
  run(*args, top, backward, HostMachine{reversed});
}

int host_launches(const LongConvArgs* args, int top, bool backward) {
  Counter counter;
  run(*args, top, backward, counter);
  return counter.launches;
}

int host_bank_conflicts(int log) {
  int worst = 0;
  with_size<kSmallest, HYENAREC_TOP>(log, [&](auto size) { worst = bank_conflicts<decltype(size)::value>(); });
  return worst;
}

}  // extern "C"
