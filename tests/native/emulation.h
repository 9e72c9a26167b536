// Launches given away instead of run on the host: benchmarks/gpu/ptx runs what nvcc made of the same programs.
#pragma once
#include <cxxabi.h>

#include <cstdint>
#include <cstdlib>
#include <typeinfo>

namespace hyenarec::cuda {

// A program's type, its bytes, and how many blocks of how many threads and bytes of shared memory. Whether it was taken:
// otherwise it runs on the host.
using Emulate = bool (*)(const char* type, const void* program, int64_t size, int64_t grid, int threads, int shared);
inline Emulate emulate = nullptr;

// Whether somebody took this launch.
template <class Program>
bool emulated(const Program& program, int64_t grid, int shared) {
  if (emulate == nullptr) return false;
  char* type = abi::__cxa_demangle(typeid(Program).name(), nullptr, nullptr, nullptr);
  bool taken = grid <= 0 || emulate(type, &program, sizeof(Program), grid, Program::kThreads, shared);
  std::free(type);
  return taken;
}

}  // namespace hyenarec::cuda

extern "C" __attribute__((used)) inline void host_emulate(hyenarec::cuda::Emulate to) { hyenarec::cuda::emulate = to; }
