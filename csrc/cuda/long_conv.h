// The gated long convolution on a CUDA device: the interface between the torch side and the kernels. It has no types of
// torch or CUDA: only pointers, strides in elements, and a stream as an opaque pointer (cudaStream_t).
//
//     u = pre_gate * x,   y[t, d] = sum_tau filter[g(d), tau] u[t - tau, d] + skip[d] u[t, d],   out = post_gate * y
//
// Linear and causal at any length. Arithmetic, filter, skip and their gradients are float32; x, gates, grad and the
// gradients of x and gates have `dtype`. No call reads anything from the device, waits for it, or allocates: all of
// them can be captured in a CUDA graph. The caller makes the tensors' device current.
#pragma once
#include <cstdint>

#include "../common/types.h"

namespace hyenarec {

struct LongConvArgs {
  Dtype dtype = Dtype::f32;  // f32, bf16 or f16
  // Padded (B, L, D): `sequences` is B, `rows` is L, and sequence s is rows [starts[s], ends[s]) of batch row s; the
  // rows around it are read as zero and written as zero. Packed (T, D): `rows` is T, sequence s is rows [starts[s],
  // ends[s]), and the sequences cover the rows; batch strides are not used.
  bool packed = false;
  int64_t sequences = 0, rows = 0, channels = 0, groups = 0, taps = 0;
  // No sequence is longer than this: L for padded input; for packed input T, or less where the host knows better, which
  // saves launches and workspace. The device sorts sequences by length: the host reads no length.
  int64_t max_length = 0;
  const void *starts = nullptr, *ends = nullptr;  // (sequences,) contiguous, on the device; null: 0 and `rows`
  bool wide_index = false;                        // starts and ends are int64, otherwise int32
  Rows x, pre_gate, post_gate;                    // a gate whose data is null is absent; channels are adjacent
  const float* filter = nullptr;                  // (groups, taps), contiguous
  const float* skip = nullptr;                    // (channels,) or null
  Rows out;
  // Backward only. Outputs that are null are not computed.
  Rows grad, dx, dpre_gate, dpost_gate;  // dpre_gate and dpost_gate only where there is such a gate
  float* dfilter = nullptr;              // (groups, taps), contiguous: every tap is written
  float* dskip = nullptr;                // (channels,)
  // At least `long_conv_workspace` bytes on the device, aligned to 256; need not be initialised.
  void* workspace = nullptr;
};

// Bytes of workspace that long_conv_forward (backward: long_conv_backward) needs on the current device for these sizes,
// flags and pointers (only whether they are null matters).
int64_t long_conv_workspace(const LongConvArgs& args, bool backward);

// Null, or why the call could not be made: one line, valid until this thread's next call. The numbers of sequences,
// rows and channels may be zero.
const char* long_conv_forward(const LongConvArgs& args, void* stream);
const char* long_conv_backward(const LongConvArgs& args, void* stream);

// Null where the current device can run the kernels and they were compiled for it, otherwise why not: one line, valid
// as above. Loads the kernels.
const char* long_conv_unsupported();

}  // namespace hyenarec
