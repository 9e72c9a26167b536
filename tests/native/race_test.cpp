// The shipped programs with a thread of the host for every thread of a block, two blocks side by side, for
// ThreadSanitizer: it reports what two threads touch without a barrier between them, one of them writing, in shared and
// global memory alike and in whichever order they ran. tests/kernels/test_cuda_host.py runs it:
//
//     race_test padded|packed TAPS [number of the barrier that every block leaves out]
#include <pthread.h>

#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "cuda/schedule.h"
#include "cuda/tensor_core.h"

namespace {

using namespace hyenarec;
using namespace hyenarec::cuda;

int dropped = -1;

class ThreadBlock {
 public:
  ThreadBlock(int thread, pthread_barrier_t* barrier) : thread_(thread), barrier_(barrier) {}
  template <class F>
  void phase(const F& f) {
    f(thread_);
    if (number_++ != dropped) pthread_barrier_wait(barrier_);
  }
  template <class F>
  void warps(const F& f) {  // one thread is the warp: what its lanes do to each other without a sync is not seen
    phase([&](int thread) {
      if (thread % 32 == 0) f(Warp{thread / 32, 0});
    });
  }

 private:
  int thread_, number_ = 0;
  pthread_barrier_t* barrier_;
};

struct ThreadMachine {
  template <class Program>
  void start(const Program& program, int64_t grid) {
    constexpr int kTogether = 2;
    std::vector<Complex> shared[kTogether];
    pthread_barrier_t barriers[kTogether];
    std::vector<std::thread> threads;
    for (int which = 0; which < kTogether; ++which) {
      shared[which].resize(shared_bytes(program) / sizeof(Complex) + 1);
      pthread_barrier_init(&barriers[which], nullptr, Program::kThreads);
      for (int thread = 0; thread < Program::kThreads; ++thread)
        threads.emplace_back([&, which, thread] {
          for (int64_t index = which; index < grid; index += kTogether) {
            ThreadBlock block(thread, &barriers[which]);
            program(block, index, shared[which].data());
            pthread_barrier_wait(&barriers[which]);
          }
        });
    }
    for (auto& thread : threads) thread.join();
    for (auto& barrier : barriers) pthread_barrier_destroy(&barrier);
  }
};

template <class Machine>
int64_t run(const LongConvArgs& args, bool backward, Machine&& machine) {
  Schedule<std::remove_reference_t<Machine>, HYENAREC_TOP, 4096> schedule(args, machine);
  backward ? schedule.backward() : schedule.forward();
  return schedule.workspace();
}

}  // namespace

int main(int count, char** words) {
  bool packed = std::strcmp(words[1], "packed") == 0;
  int64_t taps = std::atoi(words[2]);
  if (count > 3) dropped = std::atoi(words[3]);
  constexpr int64_t kRows = (1 << HYENAREC_TOP) + 22, kChannels = 18, kGroups = 9;
  std::vector<float> input(2 * kRows * kChannels, 0.5f), filter(kGroups * taps, 0.1f), skip(kChannels, 1.f);
  std::vector<float> outputs[4], dfilter(filter.size()), dskip(skip.size());
  std::vector<int64_t> bounds{0, 40, 47, kRows, 2 * kRows};

  LongConvArgs args;
  args.packed = packed;
  args.sequences = packed ? 4 : 2, args.rows = packed ? 2 * kRows : kRows, args.max_length = args.rows;
  args.channels = kChannels, args.groups = kGroups, args.taps = taps;
  if (packed) args.starts = &bounds[0], args.ends = &bounds[1], args.wide_index = true;
  args.x = args.pre_gate = args.post_gate = args.grad = {input.data(), kRows * kChannels, kChannels};
  args.filter = filter.data(), args.skip = skip.data(), args.dfilter = dfilter.data(), args.dskip = dskip.data();
  Rows* written[] = {&args.out, &args.dx, &args.dpre_gate, &args.dpost_gate};
  for (int i = 0; i < 4; ++i) {
    outputs[i].resize(input.size());
    *written[i] = {outputs[i].data(), kRows * kChannels, kChannels};
  }
  for (bool backward : {false, true}) {
    args.workspace = nullptr;
    std::vector<Complex> workspace(run(args, backward, DryRun{}) / sizeof(Complex));
    args.workspace = workspace.data();
    run(args, backward, ThreadMachine{});
  }
}
