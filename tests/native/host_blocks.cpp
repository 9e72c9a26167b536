// The block form's programs and schedule on the host, for tests/kernels/test_cuda_blocks.py. `least` is the least
// number of elements of a run; if it is small, small calls are cut into runs too, of 3 channels or more. `blocks` is
// the number of blocks of a pass; if they are few, each takes several rounds. `blocks_call` cuts calls as the backend
// does, and refuses what it refuses.
#include "cuda/block_runs.h"
#include "host_machine.h"

using namespace hyenarec;
using namespace hyenarec::cuda;

extern "C" {

int64_t blocks_args_size() { return sizeof(LegendreBlocksArgs); }

int64_t blocks_workspace(const LegendreBlocksArgs* args, bool backward, int64_t least, int blocks) {
  DryRun dry;
  LegendreBlocksArgs sizes = *args;
  sizes.workspace = nullptr;
  return run_blocks(sizes, backward, HYENAREC_SHARED, dry, least, least < kRunLeast ? 3 : kRunChannels, blocks);
}

void blocks_run(const LegendreBlocksArgs* args, bool backward, bool reversed, int64_t least, int blocks) {
  HostMachine machine{reversed};
  run_blocks(*args, backward, HYENAREC_SHARED, machine, least, least < kRunLeast ? 3 : kRunChannels, blocks);
}

int64_t blocks_call_workspace(const LegendreBlocksArgs* args, bool backward) {
  return blocks_workspace(args, backward, kRunLeast, kPassBlocks);
}

const char* blocks_call(const LegendreBlocksArgs* args, bool backward) {
  const char* wrong = wrong_blocks(*args);
  if (!wrong) blocks_run(args, backward, false, kRunLeast, kPassBlocks);
  return wrong;
}

}  // extern "C"
