// mixer_step and block_step as C functions. A package of AOTInductor calls them without torch's dispatcher, which would
// unpack and repack their 24 arguments and more three times.
#include "ops.h"

#include <dlfcn.h>

#include <exception>
#include <iostream>

namespace hyenarec::cpu {
namespace {

Tensor shared(AtenTensorHandle handle) {
  AtenTensorHandle own;
  TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(handle, &own));
  return Tensor(own);
}

std::vector<Tensor> shared(const AtenTensorHandle* handles, int64_t count) {
  std::vector<Tensor> tensors;
  tensors.reserve(count);
  for (int64_t i = 0; i < count; ++i) tensors.push_back(shared(handles[i]));
  return tensors;
}

// Packages look up a C function among the symbols that all libraries of the process share. This library may have been
// loaded without sharing its own (RTLD_LOCAL), so it shares them here.
__attribute__((constructor)) void share_symbols() {
  Dl_info here;
  if (dladdr(reinterpret_cast<void*>(&share_symbols), &here)) dlopen(here.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_GLOBAL);
}

// Gives `out` what `step` returns. An exception must not leave a C function: its reason is printed.
template <class Step>
AOTITorchError guarded(const char* name, AtenTensorHandle* out, const Step& step) {
  try {
    const Tensor found = step();
    return aoti_torch_new_tensor_handle(found.get(), out);
  } catch (const std::exception& error) {
    std::cerr << "hyenarec: " << name << ": " << error.what() << std::endl;
    return AOTI_TORCH_FAILURE;
  }
}

}  // namespace
}  // namespace hyenarec::cpu

// Names and arguments are those that hyenarec_kernels/native.py declares to AOTInductor.
extern "C" __attribute__((visibility("default"))) AOTITorchError aoti_torch_cpu_mixer_step(
    AtenTensorHandle x, AtenTensorHandle w_in, AtenTensorHandle w_out, AtenTensorHandle projected,
    AtenTensorHandle short_taps, AtenTensorHandle short_bias, const AtenTensorHandle* memory, int64_t memory_count,
    const AtenTensorHandle* tables, int64_t tables_count, AtenTensorHandle steps, const char* gate,
    AtenTensorHandle* out) {
  using namespace hyenarec::cpu;
  return guarded("mixer_step", out, [&] {
    return mixer_step(shared(x), shared(w_in), shared(w_out), shared(projected), shared(short_taps), shared(short_bias),
                      shared(memory, memory_count), shared(tables, tables_count), shared(steps), gate);
  });
}

extern "C" __attribute__((visibility("default"))) AOTITorchError aoti_torch_cpu_block_step(
    AtenTensorHandle x, const AtenTensorHandle* norms, int64_t norms_count, const AtenTensorHandle* feed_forward,
    int64_t feed_forward_count, double eps, AtenTensorHandle w_in, AtenTensorHandle w_out, AtenTensorHandle projected,
    AtenTensorHandle short_taps, AtenTensorHandle short_bias, const AtenTensorHandle* memory, int64_t memory_count,
    const AtenTensorHandle* tables, int64_t tables_count, AtenTensorHandle steps, const char* gate,
    AtenTensorHandle* out) {
  using namespace hyenarec::cpu;
  return guarded("block_step", out, [&] {
    return block_step(shared(x), shared(norms, norms_count), shared(feed_forward, feed_forward_count), eps,
                      shared(w_in), shared(w_out), shared(projected), shared(short_taps), shared(short_bias),
                      shared(memory, memory_count), shared(tables, tables_count), shared(steps), gate);
  });
}
