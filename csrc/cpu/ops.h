// The kernels as functions of tensors: arguments read into plain structs, outputs allocated.
#pragma once
#include "inputs.h"

namespace hyenarec::cpu {

// `filter` (num_samples, D): its values at the plan's lags; with `basis` (num_samples, N), coefficients (D, N). With
// `rate` (D,) it is multiplied by exp(-rate * lag).
Tensor conv(const Tensor& x, const Tensor& filter, const MaybeTensor& basis, const MaybeTensor& rate,
            const MaybeTensor& skip, const MaybeTensor& pre_gate, const MaybeTensor& post_gate,
            const MaybeTensor& starts, const MaybeTensor& ends, const Plan& plan);

// Gradients of x, filter, rate, skip, pre_gate and post_gate; here and below empty where not needed.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> conv_backward(
    const Tensor& grad, const Tensor& x, const Tensor& filter, const MaybeTensor& basis, const MaybeTensor& rate,
    const MaybeTensor& skip, const MaybeTensor& pre_gate, const MaybeTensor& post_gate, const MaybeTensor& starts,
    const MaybeTensor& ends, const Plan& plan, std::vector<bool> needs);

// x (B, L, D) or (T, D) to the last row of each sequence, (sequences, D); filter, basis and rate as in conv, at every
// lag from 0 on.
Tensor conv_last(const Tensor& x, const Tensor& filter, const MaybeTensor& basis, const MaybeTensor& rate,
                 const MaybeTensor& skip, const MaybeTensor& pre_gate, const MaybeTensor& post_gate,
                 const MaybeTensor& starts, const MaybeTensor& ends);

// Gradients of x, taps (k, D), skip, pre_gate and post_gate.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> conv_last_backward(
    const Tensor& grad, const Tensor& x, const Tensor& taps, const MaybeTensor& skip, const MaybeTensor& pre_gate,
    const MaybeTensor& post_gate, const MaybeTensor& starts, const MaybeTensor& ends, std::vector<bool> needs);

// x (B, D), the newest row of each sequence, to (B, D); `history` (B, k, D) are rings, written to; `taps` (k + 1, D),
// the largest lag first; `steps` (B,) int64. Rings whose channels do not lie side by side are copied there and back.
Tensor conv_step(const Tensor& x, const Tensor& history, const Tensor& taps, const Tensor& steps,
                 const MaybeTensor& pre_gate, const MaybeTensor& post_gate);

// x (B, D), the newest row of each sequence, to (B, D), through filter `number` of F. The state of hyenarec_kernels/nn/
// compact.py, written to: `page` (B, F, C, D); `levels`, moments (B, F, slots, R, D), which may be bfloat16, of the lowest
// level, and of each one above sums and incoming (B, F, R, D) and moments. Shared: `near` (F, C, D); `tables`, of each
// level basis (C, R), enter and leave (F, C, D) and blocks (F, slots, R, R, D). With no levels `page` is a ring of inputs by
// pages of 8, (B, F, K rounded up to whole pages, D), and `near` all taps (F, K, D). What is not contiguous is copied, there
// and back.
Tensor compact_step(const Tensor& x, const Tensor& page, std::vector<Tensor> levels, const Tensor& near,
                    std::vector<Tensor> tables, const Tensor& steps, int64_t number, const MaybeTensor& pre_gate,
                    const MaybeTensor& post_gate);

// x (B, E), the newest row of each sequence, to (B, D), through a mixer. Matrices are multiplied with rows from the left:
// `w_in` (E, C) and `w_out` (D, D), with any strides. The state of hyenarec_kernels/nn, written to: `projected`
// (B, W-1, C), `steps` (B,) and `memory`: compact_step's `page` and then its levels. Shared: `short_taps` (W, C), the
// largest lag first, `short_bias` (C,), and `tables`: compact_step's `near` and then its tables. With no levels, `memory`
// may also be a ring by rows (B, F, K-1, D) beside taps (F, K, D). float32 or float64.
Tensor mixer_step(const Tensor& x, const Tensor& w_in, const Tensor& w_out, const Tensor& projected,
                  const Tensor& short_taps, const Tensor& short_bias, std::vector<Tensor> memory,
                  std::vector<Tensor> tables, const Tensor& steps, std::string gate);

// `weight` is (width, C), lag 0 first.
Tensor short_conv(const Tensor& x, const Tensor& weight, const MaybeTensor& bias, const MaybeTensor& starts,
                  const MaybeTensor& ends, bool silu);

// The first `dim` of the short convolution's channels times the last, and those between.
std::tuple<Tensor, Tensor> gated_short_conv(const Tensor& x, const Tensor& weight, const MaybeTensor& bias,
                                            const MaybeTensor& starts, const MaybeTensor& ends, int64_t dim);

using ShortGradients = std::tuple<Tensor, Tensor, Tensor>;  // of x, weight and bias

ShortGradients short_conv_backward(const Tensor& grad, const Tensor& x, const Tensor& weight, const MaybeTensor& bias,
                                   const MaybeTensor& starts, const MaybeTensor& ends, bool silu,
                                   std::vector<bool> needs);

ShortGradients gated_short_conv_backward(const Tensor& grad_u, const Tensor& grad_q, const Tensor& x,
                                         const Tensor& weight, const MaybeTensor& bias, const MaybeTensor& starts,
                                         const MaybeTensor& ends, int64_t dim, std::vector<bool> needs);

// `x` with each element 0 by a chance of dropped / 256 and the others scaled up by as much, or its GELU so; the mask
// follows from `seed` (one int64) and an element's place in contiguous memory.
Tensor dropout(const Tensor& x, const Tensor& seed, int64_t dropped, bool gelu);
Tensor dropout_backward(const Tensor& grad, const Tensor& x, const Tensor& seed, int64_t dropped, bool gelu);

}  // namespace hyenarec::cpu
