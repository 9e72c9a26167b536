// The short depthwise convolutions, and one event more of a long one, on a CUDA device: what crosses between the torch
// side and the kernels, as long_conv.h does it and with its promises. No call reads anything from the device, waits for
// it, or allocates.
//
//     z[t, c] = sum_{j < width} weight[c, j] x[t - j, c] + bias[c]
//     out = z, or silu(z);  or, in parts of as many channels: out = (first part of z) * (last), rest = those between
#pragma once
#include <cstdint>

#include "../common/types.h"

namespace hyenarec::cuda {

constexpr int kMostTaps = 8;  // they lie in registers

// A parameter or its gradient, contiguous.
struct Values {
  void* data = nullptr;
  Dtype dtype = Dtype::f32;
};

struct ShortConvArgs {
  Dtype dtype = Dtype::f32;  // of x, the outputs and their gradients: f32, bf16 or f16
  // As in LongConvArgs; the sequences need not cover the rows: those of none are 0.
  bool packed = false, wide_index = false;
  int64_t sequences = 0, rows = 0;
  const void *starts = nullptr, *ends = nullptr;
  int64_t channels = 0;  // of x
  int64_t parts = 1;     // more than one: the first is multiplied by the last
  int64_t width = 0;     // at most kMostTaps
  bool silu = false;     // of one part
  Rows x;
  Values weight, bias;  // (channels, width) and (channels,)
  Rows out, rest;
  // backward only; what is null is not wanted
  Rows grad, grad_rest, dx;
  Values dweight, dbias;
  void* workspace = nullptr;  // short_conv_workspace bytes, aligned to 256; need not be initialised
};

int64_t short_conv_workspace(const ShortConvArgs& args);  // of the backward pass
const char* short_conv_forward(const ShortConvArgs& args, void* stream);
const char* short_conv_backward(const ShortConvArgs& args, void* stream);

// u = pre_gate * x;  out = post_gate * (sum over lags of a ring's u and the new one by taps);  u takes the place of the
// ring's oldest row, which is number steps % slots.
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
