// The programs of the short convolutions and conv_step under ThreadSanitizer (thread_machine.h);
// tests/kernels/test_cuda_short.py runs it:
//
//     short_race_test short|gated|step [number of the barrier that every block leaves out]
#include <cstdlib>
#include <cstring>
#include <vector>

#include "cuda/short_schedule.h"
#include "thread_machine.h"

namespace {

using namespace hyenarec;
using namespace hyenarec::cuda;

constexpr int64_t kRows = 150, kDim = 6;

void short_conv(int64_t parts) {
  const int64_t channels = parts * kDim;
  std::vector<float> input(kRows * channels, 0.5f), weight(channels * 3, 0.1f), bias(channels, 1.f);
  std::vector<float> out(input.size()), rest(input.size()), dx(input.size()), dweight(weight.size()), dbias(bias.size());
  std::vector<int64_t> bounds{0, 40, 47, kRows - 3};
  ShortConvArgs args;
  args.packed = args.wide_index = true;
  args.sequences = 3, args.rows = kRows, args.starts = &bounds[0], args.ends = &bounds[1];
  args.channels = channels, args.parts = parts, args.width = 3, args.silu = parts == 1;
  args.x = {input.data(), 0, channels};
  args.weight.data = weight.data(), args.bias.data = bias.data();
  args.out = {out.data(), 0, kDim};
  args.grad = {input.data(), 0, kDim};
  if (parts > 2) args.rest = {rest.data(), 0, (parts - 2) * kDim}, args.grad_rest = {input.data(), 0, (parts - 2) * kDim};
  args.dx = {dx.data(), 0, channels};
  args.dweight.data = dweight.data(), args.dbias.data = dbias.data();
  std::vector<Complex> workspace(short_conv_sums(args) / sizeof(Complex) + 1);
  args.workspace = workspace.data();
  ThreadMachine machine;
  start_short_conv(args, machine);
  start_short_conv_backward(args, machine);
}

void step() {
  constexpr int64_t kSequences = 3, kSlots = 70;
  std::vector<float> rows(kSequences * kDim, 0.5f), out(rows.size()), rings(kSequences * kSlots * kDim, 0.1f);
  std::vector<float> taps((kSlots + 1) * kDim, 0.2f);
  std::vector<int64_t> steps{-1, 5, 100};
  ConvStepArgs args;
  args.sequences = kSequences, args.channels = kDim, args.slots = kSlots;
  args.x = args.pre_gate = args.post_gate = {rows.data(), 0, kDim};
  args.out = {out.data(), 0, kDim};
  args.history = {rings.data(), kSlots * kDim, kDim};
  args.taps = taps.data(), args.steps = steps.data();
  ThreadMachine machine;
  start_conv_step(args, machine);
}

}  // namespace

int main(int count, char** words) {
  if (count > 2) dropped = std::atoi(words[2]);
  if (std::strcmp(words[1], "step") == 0)
    step();
  else
    short_conv(std::strcmp(words[1], "gated") == 0 ? 3 : 1);
}
