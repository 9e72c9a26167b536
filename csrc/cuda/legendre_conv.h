// The gated convolution with a Legendre filter, or an explicit one of few taps, on a CUDA device: the interface between
// the torch side and the kernels, as in long_conv.h.
#pragma once
#include "long_conv.h"

namespace hyenarec {

struct LegendreConvArgs {
  // Its `filter`, `taps`, `dfilter`, `skip` and `dskip` are not used: those below replace them. Its `groups` is the
  // filter's.
  LongConvArgs rows;
  bool last_only = false;  // rows.out, post_gate and grad: (sequences, D), of each sequence's last row
  // filter: (groups, terms) coefficients, or the taps of an explicit filter; decay: (groups,) or null; skip:
  // (channels,) or null.
  Dtype parameters = Dtype::f32;  // of filter and decay
  const void *filter = nullptr, *decay = nullptr;
  int64_t terms = 0;
  int64_t horizon = 0;  // 0: an explicit filter
  Dtype skip_dtype = Dtype::f32;
  const void* skip = nullptr;
  void *dfilter = nullptr, *ddecay = nullptr, *dskip = nullptr;  // shaped as these three; null where not computed
};

// How many taps can reach a row: the filter's, but no more than the longest sequence has rows.
inline int64_t legendre_conv_taps(const LegendreConvArgs& args);
constexpr int64_t kMostToeplitzTaps = 512;

int64_t legendre_conv_workspace(const LegendreConvArgs& args, bool backward);
const char* legendre_conv_forward(const LegendreConvArgs& args, void* stream);
const char* legendre_conv_backward(const LegendreConvArgs& args, void* stream);

}  // namespace hyenarec
