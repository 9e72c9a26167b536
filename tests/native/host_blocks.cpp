// The block form's programs and schedule on the host, for tests/kernels/test_cuda_blocks.py. `least` is the least number
// of elements of a run, so that small calls are cut too, into 3 channels or more.
#include <vector>

#include "cuda/block_schedule.h"

namespace {

using namespace hyenarec;
using namespace hyenarec::cuda;

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
    std::vector<Aligned<4>> shared(Program::kSharedBytes / sizeof(Aligned<4>) + 1);
    for (int64_t i = 0; i < grid; ++i) {
      std::fill(shared.begin(), shared.end(), Aligned<4>{{~0u, ~0u, ~0u, ~0u}});
      HostBlock block{Program::kThreads, reversed};
      program(block, reversed ? grid - 1 - i : i, shared.data());
    }
  }
};

}  // namespace

extern "C" {

int64_t blocks_args_size() { return sizeof(LegendreBlocksArgs); }

int64_t blocks_workspace(const LegendreBlocksArgs* args, bool backward, int64_t least) {
  DryRun dry;
  LegendreBlocksArgs sizes = *args;
  sizes.workspace = nullptr;
  return run_blocks(sizes, backward, dry, least, least < kRunLeast ? 3 : kRunChannels);
}

void blocks_run(const LegendreBlocksArgs* args, bool backward, bool reversed, int64_t least) {
  HostMachine machine{reversed};
  run_blocks(*args, backward, machine, least, least < kRunLeast ? 3 : kRunChannels);
}

}  // extern "C"
