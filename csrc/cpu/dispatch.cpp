// The best instruction set this machine has, or the one HYENAREC_CPU_ISA names.
#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "args.h"

namespace hyenarec {
namespace {

bool supported(const std::string& name) {
  if (name == "portable") return true;
#if defined(__x86_64__)
  __builtin_cpu_init();
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  if (name == "avx2") return avx2;
  return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512cd");
#else
  return false;
#endif
}

const Kernels& choose() {
  const Kernels* known[] = {
#if defined(__x86_64__)
      &kernels_avx512, &kernels_avx2,
#endif
      &kernels_portable};
  const char* forced = std::getenv("HYENAREC_CPU_ISA");
  for (const Kernels* candidate : known)
    if (forced && *forced ? std::string(forced) == candidate->name : supported(candidate->name)) {
      if (!supported(candidate->name))
        throw std::runtime_error(std::string("HYENAREC_CPU_ISA=") + forced + ": this machine has no " + forced);
      return *candidate;
    }
  throw std::runtime_error(std::string("HYENAREC_CPU_ISA=") + forced + ": allowed are avx512, avx2 and portable");
}

}  // namespace

namespace {
std::atomic<int64_t> held{0}, most{0};
}

void count_scratch(int64_t bytes) {
  int64_t now = held.fetch_add(bytes) + bytes, seen = most.load();
  while (now > seen && !most.compare_exchange_weak(seen, now)) {
  }
}

int64_t scratch_peak() { return most.exchange(held.load()); }

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace hyenarec
