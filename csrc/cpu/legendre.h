// The Legendre basis and its windows, as hyenarec_kernels/legendre.py defines them.
#pragma once
#include "inputs.h"

namespace hyenarec::cpu {

// sqrt(2n+1) P_n(2 lag / (horizon-1) - 1) at any lags, (lags, terms).
std::vector<double> legendre_at(const std::vector<double>& lags, int64_t terms, int64_t horizon);

// The same at the lags from 0 on, (taps, terms), in the arithmetic type of x; computed once and cached.
Tensor legendre_at_taps(const Tensor& x, int64_t terms, int64_t horizon, int64_t taps);

// From decay (G,) to the rate per event of each channel of x, (D,), in the arithmetic type; refuses negative decays.
Tensor event_rate(const Tensor& decay, const Tensor& x, int64_t horizon);

}  // namespace hyenarec::cpu
