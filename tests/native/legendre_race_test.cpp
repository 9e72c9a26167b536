// Runs the Toeplitz programs under ThreadSanitizer (thread_machine.h). tests/kernels/test_toeplitz_host.py calls it:
//
//     legendre_race_test rows|last [number of the barrier that every block leaves out]
//
// Packed bfloat16 with a Legendre filter, forward and backward. A launch has two blocks, so that each takes two rounds.
#include <cstdlib>
#include <cstring>

#include "cuda/legendre_schedule.h"
#include "thread_machine.h"

namespace {

using namespace hyenarec;
using namespace hyenarec::cuda;

template <class Machine>
int64_t run(const LegendreConvArgs& args, bool backward, Machine&& machine) {
  LegendreSchedule<std::remove_reference_t<Machine>, 2> schedule(args, 227 << 10, machine);
  backward ? schedule.backward() : schedule.forward();
  return schedule.workspace();
}

}  // namespace

int main(int count, char** words) {
  bool last_only = std::strcmp(words[1], "last") == 0;
  if (count > 2) dropped = std::atoi(words[2]);
  constexpr int64_t kRows = 1200, kChannels = 18, kGroups = 9, kTerms = 4, kSequences = 4;
  std::vector<Bfloat16> input(kRows * kChannels, Bfloat16::of(0.5f)), outputs[4];
  std::vector<float> coefficients(kGroups * kTerms, 0.1f), decay(kGroups, 1.f), skip(kChannels, 1.f);
  std::vector<float> dcoefficients(coefficients.size()), ddecay(decay.size()), dskip(skip.size());
  std::vector<int64_t> bounds{0, 40, 40, kRows - 3, kRows};

  LegendreConvArgs args;
  LongConvArgs& rows = args.rows;
  rows.dtype = Dtype::bf16, rows.packed = rows.wide_index = true;
  rows.sequences = kSequences, rows.rows = rows.max_length = kRows, rows.starts = &bounds[0], rows.ends = &bounds[1];
  rows.channels = kChannels, rows.groups = kGroups;
  rows.x = rows.pre_gate = rows.post_gate = rows.grad = {input.data(), 0, kChannels};
  args.last_only = last_only, args.terms = kTerms, args.horizon = 100;
  args.filter = coefficients.data(), args.decay = decay.data(), args.skip = skip.data();
  args.dfilter = dcoefficients.data(), args.ddecay = ddecay.data(), args.dskip = dskip.data();
  Rows* written[] = {&rows.out, &rows.dx, &rows.dpre_gate, &rows.dpost_gate};
  for (int i = 0; i < 4; ++i) {
    outputs[i].resize(input.size());
    *written[i] = {outputs[i].data(), 0, kChannels};
  }
  Rows out = rows.out, grad = rows.grad;
  for (bool backward : {false, true}) {
    rows.out = backward ? Rows{} : out;
    rows.grad = backward ? grad : Rows{};
    rows.workspace = nullptr;
    std::vector<Complex> workspace(run(args, backward, DryRun{}) / sizeof(Complex) + 1);
    rows.workspace = workspace.data();
    run(args, backward, ThreadMachine{});
  }
}
