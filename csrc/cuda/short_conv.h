// The short depthwise convolutions, and the streaming step of a long one, on a CUDA device: the interface between the
// torch side and the kernels, with the form and the promises of long_conv.h. No call reads anything from the device,
// waits for it, or allocates.
//
//     z[t, c] = sum_{j < width} weight[c, j] x[t - j, c] + bias[c]
//     out = z, or silu(z);  or, in parts of equally many channels: out = (first part of z) * (last), rest = the others
#pragma once
#include <cstdint>

#include "../common/types.h"

namespace hyenarec::cuda {

constexpr int kMostTaps = 8;  // taps are kept in registers

// A parameter or its gradient, contiguous.
struct Values {
  void* data = nullptr;
  Dtype dtype = Dtype::f32;
};

struct ShortConvArgs {
  Dtype dtype = Dtype::f32;  // of x, the outputs and their gradients: f32, bf16 or f16
  // As in LongConvArgs, but the sequences need not cover the rows: outputs are 0 at rows of no sequence.
  bool packed = false, wide_index = false;
  int64_t sequences = 0, rows = 0;
  const void *starts = nullptr, *ends = nullptr;
  int64_t channels = 0;  // of x
  int64_t parts = 1;     // more than one: the first is multiplied by the last
  int64_t width = 0;     // at most kMostTaps
  bool silu = false;     // only with one part
  Rows x;
  Values weight, bias;  // (channels, width) and (channels,)
  Rows out, rest;
  // Backward only. Outputs that are null are not computed.
  Rows grad, grad_rest, dx;
  Values dweight, dbias;
  void* workspace = nullptr;  // short_conv_workspace bytes, aligned to 256; need not be initialised
};

int64_t short_conv_workspace(const ShortConvArgs& args);  // of the backward pass
const char* short_conv_forward(const ShortConvArgs& args, void* stream);
const char* short_conv_backward(const ShortConvArgs& args, void* stream);

// u = pre_gate * x;  out = post_gate * (sum of taps times the ring's rows and u, by lag);  then u replaces the ring's
// oldest row, number steps % slots.
struct ConvStepArgs {
  Dtype dtype = Dtype::f32;  // of x, gates and out, a row for each sequence
  int64_t sequences = 0, channels = 0, slots = 0;
  Rows x, pre_gate, post_gate, out;
  Rows history;                  // (sequences, slots, channels) float32: read and written
  const float* taps = nullptr;   // (slots + 1, channels), the largest lag first
  const int64_t* steps = nullptr;  // (sequences,)
};

const char* conv_step(const ConvStepArgs& args, void* stream);

}  // namespace hyenarec::cuda
