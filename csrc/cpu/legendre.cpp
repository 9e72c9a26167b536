#include "legendre.h"

#include <cmath>
#include <map>
#include <mutex>

namespace hyenarec::cpu {
namespace {

constexpr double kFastest = 1000;  // rate per event beyond which only lag 0 is left in any dtype

template <class A>
void write_rates(const Tensor& decay, int64_t shared, int64_t horizon, A* out) {
  const A* in = static_cast<const A*>(decay.data_ptr());
  for (int64_t g = 0; g < decay.size(0); ++g) {
    STD_TORCH_CHECK(!(in[g] < 0), "legendre_conv: decay must be at least 0, got ", in[g]);
    A rate = in[g] > A(kFastest) * A(horizon) ? A(kFastest) : in[g] / A(horizon);
    for (int64_t i = 0; i < shared; ++i) out[g * shared + i] = rate;
  }
}

}  // namespace

std::vector<double> legendre_at(const std::vector<double>& lags, int64_t terms, int64_t horizon) {
  std::vector<double> basis(lags.size() * size_t(terms));
  double* row = basis.data();
  for (double lag : lags) {
    const double x = 2 * lag / double(horizon > 1 ? horizon - 1 : 1) - 1;
    double before = 0, now = 1;  // P_{n-1}, P_n
    for (int64_t n = 0; n < terms; ++n) {
      *row++ = now * std::sqrt(double(2 * n + 1));
      double next = (double(2 * n + 1) * x * now - double(n) * before) / double(n + 1);  // Bonnet
      before = now, now = next;
    }
  }
  return basis;
}

Tensor legendre_at_taps(const Tensor& x, int64_t terms, int64_t horizon, int64_t taps) {
  using Key = std::tuple<int64_t, int64_t, bool>;
  static auto& kept = *new std::map<Key, Tensor>;  // never freed: torch may be gone when statics are destroyed
  static std::mutex mutex;
  const ScalarType type = arithmetic(dtype_of(x));
  std::lock_guard<std::mutex> lock(mutex);
  auto found = kept.find({terms, horizon, type == ScalarType::Double});
  if (found == kept.end()) {
    std::vector<double> lags(horizon);
    for (int64_t lag = 0; lag < horizon; ++lag) lags[lag] = double(lag);
    Tensor basis = tensor_of(x, legendre_at(lags, terms, horizon), {horizon, terms});
    found = kept.emplace(Key{terms, horizon, type == ScalarType::Double}, basis).first;
  }
  return torch::stable::narrow(found->second, 0, 0, taps);
}

Tensor event_rate(const Tensor& decay_, const Tensor& x, int64_t horizon) {
  const int64_t channels = x.size(x.dim() - 1);
  STD_TORCH_CHECK(decay_.dim() == 1 && decay_.size(0) > 0 && channels % decay_.size(0) == 0,
                  "decay: expected one value a group");
  Tensor decay = in_arithmetic(decay_, x), rate = empty(x, {channels}, decay.scalar_type());
  const int64_t shared = channels / decay.size(0);
  decay.scalar_type() == ScalarType::Double
      ? write_rates(decay, shared, horizon, static_cast<double*>(rate.data_ptr()))
      : write_rates(decay, shared, horizon, static_cast<float*>(rate.data_ptr()));
  return rate;
}

}  // namespace hyenarec::cpu
