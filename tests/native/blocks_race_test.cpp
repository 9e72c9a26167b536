// Runs the block form's programs under ThreadSanitizer (thread_machine.h). tests/kernels/test_cuda_blocks.py calls it:
//
//     blocks_race_test padded|packed HORIZON LEVELS [number of the barrier that every block leaves out]
#include <cstdlib>
#include <cstring>

#include "cuda/block_runs.h"
#include "thread_machine.h"

int main(int count, char** words) {
  using namespace hyenarec;
  using namespace hyenarec::cuda;
  const bool packed = std::strcmp(words[1], "packed") == 0;
  if (count > 4) dropped = std::atoi(words[4]);
  constexpr int kShared = 227 << 10;
  constexpr int64_t kRows = 1100, kChannels = 18, kGroups = 9, kTerms = 4;
  std::vector<float> input(kRows * kChannels, 0.5f), coefficients(kGroups * kTerms, 0.1f), decay(kGroups, 1.f);
  std::vector<float> skip(kChannels, 1.f), dcoefficients(coefficients.size()), ddecay(kGroups), dskip(kChannels);
  std::vector<float> outputs[4];
  std::vector<int64_t> bounds{0, 300, 300, kRows};

  LegendreBlocksArgs args;
  args.packed = packed;
  args.sequences = packed ? 3 : 1, args.rows = args.max_length = kRows;
  args.channels = kChannels, args.groups = kGroups, args.terms = kTerms, args.horizon = std::atoi(words[2]);
  if (packed) args.starts = &bounds[0], args.ends = &bounds[1], args.wide_index = true;
  args.x = args.pre_gate = args.post_gate = args.grad = {input.data(), kRows * kChannels, kChannels};
  args.coefficients = coefficients.data(), args.decay = decay.data(), args.skip = skip.data();
  args.num_levels = std::atoi(words[3]);
  args.levels[0] = args.num_levels == 1 ? BlockLevel{256, 0, 5, 3, 4, 0} : BlockLevel{256, 4, 5, 3, 4, 1};
  args.levels[1] = {1024, 0, 6, 1, 2, 0};
  std::vector<float> constants(size_t(legendre_blocks_constants(args)), 0.01f);
  args.constants = constants.data();
  Rows* written[] = {&args.out, &args.dx, &args.dpre_gate, &args.dpost_gate};
  for (int i = 0; i < 4; ++i) {
    outputs[i].resize(input.size());
    *written[i] = {outputs[i].data(), kRows * kChannels, kChannels};
  }
  args.dcoefficients = dcoefficients.data(), args.ddecay = ddecay.data(), args.dskip = dskip.data();
  for (bool backward : {false, true}) {
    args.workspace = nullptr;
    DryRun dry;
    std::vector<Aligned<4>> workspace(size_t(run_blocks(args, backward, kShared, dry)) / sizeof(Aligned<4>) + 1);
    args.workspace = workspace.data();
    ThreadMachine machine;
    run_blocks(args, backward, kShared, machine);
  }
}
