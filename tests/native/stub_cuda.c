/* Stands in for the CUDA driver where there is no GPU, for benchmarks/gpu/pretence.py. Triton's own compiler and
   launchers use it; every call succeeds, and kernels do nothing. It has the functions that Triton links; those that
   return a property answer for compute capability 9.0.

   gcc -shared -fPIC -Wl,-soname,libcuda.so.1 -o FOLDER/libcuda.so.1 tests/native/stub_cuda.c */
#include <stddef.h>

typedef int Result; /* 0 is success */

enum {
  /* CUdevice_attribute */
  WARP_SIZE = 10,
  SHARED_MEMORY_A_BLOCK = 97,
  SHARED_MEMORY_A_MULTIPROCESSOR = 81,
  /* CUfunction_attribute */
  MAX_THREADS_PER_BLOCK = 0
};

Result cuGetErrorString(int code, const char** text) {
  (void)code;
  *text = "an error of the stub driver";
  return 0;
}

Result cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return 0;
}

Result cuDeviceGetAttribute(int* value, int attribute, int device) {
  (void)device;
  switch (attribute) {
    case WARP_SIZE: *value = 32; break;
    case SHARED_MEMORY_A_BLOCK: *value = 232448; break;
    case SHARED_MEMORY_A_MULTIPROCESSOR: *value = 233472; break;
    default: *value = 65536; /* among others, the number of registers */
  }
  return 0;
}

static char context, module, function; /* handles are only compared with null */

Result cuCtxGetCurrent(void** current) {
  *current = &context;
  return 0;
}

Result cuCtxSetCurrent(void* current) {
  (void)current;
  return 0;
}

Result cuDevicePrimaryCtxRetain(void** retained, int device) {
  (void)device;
  *retained = &context;
  return 0;
}

Result cuModuleLoadData(void** loaded, const void* image) {
  (void)image;
  *loaded = &module;
  return 0;
}

Result cuModuleGetFunction(void** found, void* from, const char* name) {
  (void)from;
  (void)name;
  *found = &function;
  return 0;
}

Result cuFuncGetAttribute(int* value, int attribute, void* of) {
  (void)of;
  *value = attribute == MAX_THREADS_PER_BLOCK ? 1024 : 0; /* no local memory: no spills */
  return 0;
}

Result cuFuncSetCacheConfig(void* of, int config) {
  (void)of;
  (void)config;
  return 0;
}

Result cuFuncSetAttribute(void* of, int attribute, int value) {
  (void)of;
  (void)attribute;
  (void)value;
  return 0;
}

Result cuOccupancyMaxActiveClusters(int* clusters, void* of, const void* config) {
  (void)of;
  (void)config;
  *clusters = 1;
  return 0;
}

Result cuCtxGetLimit(size_t* value, int limit) {
  (void)limit;
  *value = 0;
  return 0;
}

Result cuCtxSetLimit(int limit, size_t value) {
  (void)limit;
  (void)value;
  return 0;
}

Result cuTensorMapEncodeTiled(void) { return 0; }

Result cuLaunchKernelEx(const void* config, void* of, void** arguments, void** extra) {
  (void)config;
  (void)of;
  (void)arguments;
  (void)extra;
  return 0;
}

/* The host's memory stands in for the device's, so a pointer's device address is the pointer itself. */
Result cuPointerGetAttribute(void* value, int attribute, unsigned long long address) {
  (void)attribute;
  *(unsigned long long*)value = address;
  return 0;
}

Result cuMemGetInfo_v2(size_t* free, size_t* total) {
  *free = *total = 0;
  return 0;
}
