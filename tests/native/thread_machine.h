// Runs programs of csrc/cuda for ThreadSanitizer, with a thread of the host for every thread of a block and two blocks
// at a time. The tool reports any place in shared or global memory that two threads access without a barrier between
// them, if one of them writes, in whichever order they ran.
#pragma once
#include <pthread.h>

#include <thread>
#include <vector>

#include "cuda/tensor_core.h"

namespace hyenarec::cuda {

inline int dropped = -1;  // the barrier that every block leaves out

class ThreadBlock {
 public:
  ThreadBlock(int thread, pthread_barrier_t* barrier) : thread_(thread), barrier_(barrier) {}
  template <class F>
  void phase(const F& f) {
    f(thread_);
    if (number_++ != dropped) pthread_barrier_wait(barrier_);
  }
  template <class F>
  void warps(const F& f) {  // one thread runs the whole warp: races between its lanes are not seen
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

}  // namespace hyenarec::cuda
