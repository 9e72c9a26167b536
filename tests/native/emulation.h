// Lets a caller take over launches instead of having them run on the host: benchmarks/gpu/ptx runs what nvcc compiled
// from the same programs.
#pragma once
#include <cxxabi.h>

#include <cstdint>
#include <cstdlib>
#include <typeinfo>

namespace hyenarec::cuda {

// Gets a program's type and bytes, the number of blocks, their threads and bytes of shared memory. Returns whether it
// took the launch; if not, the launch runs on the host.
using Emulate = bool (*)(const char* type, const void* program, int64_t size, int64_t grid, int threads, int shared);
inline Emulate emulate = nullptr;

// Whether the launch was taken.
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
