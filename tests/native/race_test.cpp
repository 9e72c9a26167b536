// Runs the shipped programs under ThreadSanitizer (thread_machine.h). tests/kernels/test_cuda_host.py calls it:
//
//     race_test padded|packed TAPS GROUPS [number of the barrier that every block leaves out]
//
// Each group has two channels.
#include <cstdlib>
#include <cstring>
#include <vector>

#include "cuda/schedule.h"
#include "thread_machine.h"

namespace {

using namespace hyenarec;
using namespace hyenarec::cuda;

template <class Machine>
int64_t run(const LongConvArgs& args, bool backward, Machine&& machine) {
  Schedule<std::remove_reference_t<Machine>, HYENAREC_TOP, 4096> schedule(args, machine);
  backward ? schedule.backward() : schedule.forward();
  return schedule.workspace();
}

}  // namespace

int main(int count, char** words) {
  bool packed = std::strcmp(words[1], "packed") == 0;
  const int64_t taps = std::atoi(words[2]), groups = std::atoi(words[3]), channels = 2 * groups;
  if (count > 4) dropped = std::atoi(words[4]);
  constexpr int64_t kRows = (1 << HYENAREC_TOP) + 22;
  std::vector<float> input(2 * kRows * channels, 0.5f), filter(groups * taps, 0.1f), skip(channels, 1.f);
  std::vector<float> outputs[4], dfilter(filter.size()), dskip(skip.size());
  std::vector<int64_t> bounds{0, 40, 47, kRows, 2 * kRows};

  LongConvArgs args;
  args.packed = packed;
  args.sequences = packed ? 4 : 2, args.rows = packed ? 2 * kRows : kRows, args.max_length = args.rows;
  args.channels = channels, args.groups = groups, args.taps = taps;
  if (packed) args.starts = &bounds[0], args.ends = &bounds[1], args.wide_index = true;
  args.x = args.pre_gate = args.post_gate = args.grad = {input.data(), kRows * channels, channels};
  args.filter = filter.data(), args.skip = skip.data(), args.dfilter = dfilter.data(), args.dskip = dskip.data();
  Rows* written[] = {&args.out, &args.dx, &args.dpre_gate, &args.dpost_gate};
  for (int i = 0; i < 4; ++i) {
    outputs[i].resize(input.size());
    *written[i] = {outputs[i].data(), kRows * channels, channels};
  }
  for (bool backward : {false, true}) {
    args.workspace = nullptr;
    std::vector<Complex> workspace(run(args, backward, DryRun{}) / sizeof(Complex));
    args.workspace = workspace.data();
    run(args, backward, ThreadMachine{});
  }
}
