// The kernels as functions of tensors: they read their arguments into plain structs and allocate the outputs.
#pragma once
#include "inputs.h"

namespace hyenarec::cpu {

// x (B, L, D) or (T, D) to the same shape. `filter` (num_samples, D) has the filter's values at the plan's lags; with
// `basis` (num_samples, N), it is coefficients (D, N). With `rate` (D,), the filter is multiplied by exp(-rate * lag).
Tensor conv(const Tensor& x, const Tensor& filter, const MaybeTensor& basis, const MaybeTensor& rate,
            const MaybeTensor& skip, const MaybeTensor& pre_gate, const MaybeTensor& post_gate,
            const MaybeTensor& starts, const MaybeTensor& ends, const Plan& plan);

// Gradients of x, filter, rate, skip, pre_gate and post_gate. Here and below, a gradient that is not needed is empty.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> conv_backward(
    const Tensor& grad, const Tensor& x, const Tensor& filter, const MaybeTensor& basis, const MaybeTensor& rate,
    const MaybeTensor& skip, const MaybeTensor& pre_gate, const MaybeTensor& post_gate, const MaybeTensor& starts,
    const MaybeTensor& ends, const Plan& plan, std::vector<bool> needs);

// Only the last row of each sequence: x (B, L, D) or (T, D) to (sequences, D). `filter`, `basis` and `rate` as in conv,
// at every lag from 0 on.
Tensor conv_last(const Tensor& x, const Tensor& filter, const MaybeTensor& basis, const MaybeTensor& rate,
                 const MaybeTensor& skip, const MaybeTensor& pre_gate, const MaybeTensor& post_gate,
                 const MaybeTensor& starts, const MaybeTensor& ends);

// Gradients of x, taps (k, D), skip, pre_gate and post_gate.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> conv_last_backward(
    const Tensor& grad, const Tensor& x, const Tensor& taps, const MaybeTensor& skip, const MaybeTensor& pre_gate,
    const MaybeTensor& post_gate, const MaybeTensor& starts, const MaybeTensor& ends, std::vector<bool> needs);

// The streaming step: x (B, D), the newest row of each sequence, to (B, D). `history` (B, k, D) holds rings of past
// rows and is written to; `taps` (k + 1, D) has the largest lag first; `steps` is (B,) int64. Rings whose channels are
// not adjacent in memory are copied there and back.
Tensor conv_step(const Tensor& x, const Tensor& history, const Tensor& taps, const Tensor& steps,
                 const MaybeTensor& pre_gate, const MaybeTensor& post_gate);

// The streaming step through filter `number` of F, with the state of hyenarec_kernels/nn/compact.py: x (B, D), the
// newest row of each sequence, to (B, D). Written to: `page` (B, F, C, D); `levels`, which has moments (B, F, slots, R,
// D), possibly bfloat16, of the lowest level, then sums and incoming (B, F, R, D) and moments of each level above. Only
// read: `near` (F, C, D); `tables`, which has basis (C, R), enter and leave (F, C, D) and blocks (F, slots, R, R, D) of
// each level. With no levels, `page` is a ring of inputs in pages of 8, (B, F, K rounded up to whole pages, D), and
// `near` has all taps (F, K, D). Tensors that are not contiguous are copied there and back.
Tensor compact_step(const Tensor& x, const Tensor& page, std::vector<Tensor> levels, const Tensor& near,
                    std::vector<Tensor> tables, const Tensor& steps, int64_t number, const MaybeTensor& pre_gate,
                    const MaybeTensor& post_gate);

// The streaming step of a mixer: x (B, E), the newest row of each sequence, to (B, D). `w_in` (E, C) and `w_out` (D, D)
// may have any strides and are multiplied from the left: x @ w_in. Written to, the state of hyenarec_kernels/nn:
// `projected` (B, W-1, C), `steps` (B,) and `memory`, which is compact_step's `page` and then its levels. Only read:
// `short_taps` (W, C), the largest lag first, `short_bias` (C,), and `tables`, which is compact_step's `near` and then
// its tables. With no levels, `memory` may also be a ring of rows (B, F, K-1, D) with taps (F, K, D). float32 or
// float64.
Tensor mixer_step(const Tensor& x, const Tensor& w_in, const Tensor& w_out, const Tensor& projected,
                  const Tensor& short_taps, const Tensor& short_bias, std::vector<Tensor> memory,
                  std::vector<Tensor> tables, const Tensor& steps, std::string gate);

// The streaming step of a pre-norm block, x + mixer(norm(x)) and to that the feed-forward of its norm: x (B, D) to
// (B, D). `norms` has weight and bias (D,) of the mixer's norm, then of the feed-forward's; `feed_forward` has its
// matrices and biases, (D, H), (H,), (H, D) and (D,). The other arguments are mixer_step's.
Tensor block_step(const Tensor& x, std::vector<Tensor> norms, std::vector<Tensor> feed_forward, double eps,
                  const Tensor& w_in, const Tensor& w_out, const Tensor& projected, const Tensor& short_taps,
                  const Tensor& short_bias, std::vector<Tensor> memory, std::vector<Tensor> tables,
                  const Tensor& steps, std::string gate);

// `weight` is (width, C), lag 0 first.
Tensor short_conv(const Tensor& x, const Tensor& weight, const MaybeTensor& bias, const MaybeTensor& starts,
                  const MaybeTensor& ends, bool silu);

// The short convolution's first `dim` channels times its last `dim`, and the channels between.
std::tuple<Tensor, Tensor> gated_short_conv(const Tensor& x, const Tensor& weight, const MaybeTensor& bias,
                                            const MaybeTensor& starts, const MaybeTensor& ends, int64_t dim);

using ShortGradients = std::tuple<Tensor, Tensor, Tensor>;  // of x, weight and bias

ShortGradients short_conv_backward(const Tensor& grad, const Tensor& x, const Tensor& weight, const MaybeTensor& bias,
                                   const MaybeTensor& starts, const MaybeTensor& ends, bool silu,
                                   std::vector<bool> needs);

ShortGradients gated_short_conv_backward(const Tensor& grad_u, const Tensor& grad_q, const Tensor& x,
                                         const Tensor& weight, const MaybeTensor& bias, const MaybeTensor& starts,
                                         const MaybeTensor& ends, int64_t dim, std::vector<bool> needs);

// Dropout of `x`, or of its GELU: each element becomes 0 with probability dropped / 256, and the others are scaled up
// accordingly. The mask follows from `seed` (one int64) and an element's position in contiguous memory.
Tensor dropout(const Tensor& x, const Tensor& seed, int64_t dropped, bool gelu);
Tensor dropout_backward(const Tensor& grad, const Tensor& x, const Tensor& seed, int64_t dropped, bool gelu);

}  // namespace hyenarec::cpu
