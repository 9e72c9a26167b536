// Runs the short convolutions' programs and conv_step under sanitizers. tests/kernels/test_cuda_short.py calls it:
//
//     short_calls short|gated|step [number of the barrier that every block leaves out]
//
// Every thread of a block is a thread of the host (thread_machine.h). With HYENAREC_BOUNDS defined, threads run one
// after the other instead, and some calls have wrong starts and ends. Each tensor has memory of its own, of exactly its
// size, so that AddressSanitizer notices accesses outside.
#include <cstdlib>
#include <cstring>
#include <vector>

#include "cuda/short_schedule.h"
#ifdef HYENAREC_BOUNDS
#include "host_machine.h"
#else
#include "thread_machine.h"
#endif

namespace {

using namespace hyenarec;
using namespace hyenarec::cuda;

constexpr int64_t kRows = 150, kDim = 6, kFar = int64_t(1) << 62;
using Bounds = std::vector<int64_t>;

#ifdef HYENAREC_BOUNDS
using Machine = HostMachine;
const std::vector<Bounds> kBounds{{0, 40, 47, kRows - 3},   {0, 40, 47, 9000},     {-5, -3, 200, 300}, {0, 149, 3, 150},
                                  {kFar, -kFar, kFar, 0},   {150, 150, 150, 150},  {149, 148, 147, 0}, {-kFar, 0, kFar, kFar + 1},
                                  {0, 1 << 30, -(1 << 30), int64_t(1) << 32}};
#else
using Machine = ThreadMachine;
const std::vector<Bounds> kBounds{{0, 40, 47, kRows - 3}};
#endif

// A packed call if `batch` is 0, otherwise a padded one with `batch` rows.
void short_conv(int64_t parts, Bounds bounds, int64_t batch) {
  const int64_t channels = parts * kDim;
  const int64_t rows = batch > 0 ? kRows / batch : kRows;
  std::vector<float> input(kRows * channels, 0.5f), weight(channels * 3, 0.1f), bias(channels, 1.f);
  std::vector<float> out(input.size()), rest(input.size()), dx(input.size()), dweight(weight.size()), dbias(bias.size());
  ShortConvArgs args;
  args.packed = batch == 0, args.wide_index = true;
  args.sequences = 3, args.rows = rows, args.starts = &bounds[0], args.ends = &bounds[1];
  args.channels = channels, args.parts = parts, args.width = 3, args.silu = parts == 1;
  args.x = {input.data(), rows * channels, channels};
  args.weight.data = weight.data(), args.bias.data = bias.data();
  args.out = {out.data(), rows * kDim, kDim};
  args.grad = {input.data(), rows * kDim, kDim};
  const int64_t between = (parts - 2) * kDim;
  if (parts > 2) args.rest = {rest.data(), rows * between, between}, args.grad_rest = {input.data(), rows * between, between};
  args.dx = {dx.data(), rows * channels, channels};
  args.dweight.data = dweight.data(), args.dbias.data = dbias.data();
  std::vector<Complex> workspace(short_conv_sums(args) / sizeof(Complex) + 1);
  args.workspace = workspace.data();
  Machine machine{};
  start_short_conv(args, machine);
  start_short_conv_backward(args, machine);
}

void step() {
  constexpr int64_t kSequences = 3, kSlots = 70;
  std::vector<float> rows(kSequences * kDim, 0.5f), out(rows.size()), rings(kSequences * kSlots * kDim, 0.1f);
  std::vector<float> taps((kSlots + 1) * kDim, 0.2f);
  std::vector<int64_t> steps{-1, 5, kFar};
  ConvStepArgs args;
  args.sequences = kSequences, args.channels = kDim, args.slots = kSlots;
  args.x = args.pre_gate = args.post_gate = {rows.data(), 0, kDim};
  args.out = {out.data(), 0, kDim};
  args.history = {rings.data(), kSlots * kDim, kDim};
  args.taps = taps.data(), args.steps = steps.data();
  Machine machine{};
  start_conv_step(args, machine);
}

}  // namespace

int main(int count, char** words) {
#ifndef HYENAREC_BOUNDS
  if (count > 2) dropped = std::atoi(words[2]);
#endif
  if (std::strcmp(words[1], "step") == 0) return step(), 0;
  for (const Bounds& bounds : kBounds)
    for (int64_t batch : {0, 3})
      if (batch == 0 || kBounds.size() > 1) short_conv(std::strcmp(words[1], "gated") == 0 ? 3 : 1, bounds, batch);
}
