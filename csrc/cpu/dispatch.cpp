// Chooses the best instruction set that this machine has, or the one that HYENAREC_CPU_ISA names.
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

const Kernels* const known[] = {  // the best first
#if defined(__x86_64__)
    &avx512::kernels, &avx2::kernels,
#endif
    &portable::kernels};

// "avx512, avx2 and portable", or those of them that this machine has.
std::string names(bool here) {
  std::string all;
  for (const Kernels* kernels : known)
    if (!here || supported(kernels->name))
      all += (all.empty() ? "" : kernels == &portable::kernels ? " and " : ", ") + std::string(kernels->name);
  return all;
}

const Kernels& choose() {
  const char* variable = std::getenv("HYENAREC_CPU_ISA");
  const std::string forced = variable ? variable : "";
  for (const Kernels* kernels : known) {
    if (!forced.empty() && forced != kernels->name) continue;
    if (supported(kernels->name)) return *kernels;
    if (!forced.empty())
      throw std::runtime_error("HYENAREC_CPU_ISA=" + forced + ": this machine has no " + forced +
                               "; allowed here are " + names(true));
  }
  throw std::runtime_error("HYENAREC_CPU_ISA=" + forced + ": allowed are " + names(false));
}

std::atomic<int64_t> held{0}, most{0};  // bytes of scratch

}  // namespace

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
