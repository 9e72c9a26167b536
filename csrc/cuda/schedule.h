// What a call of long_conv.h launches, in which order, and where its workspace lies; the same for the device and for
// tests on the host.
//
// `Machine` has start(program, grid). A dry run of the same code, which launches nothing, counts the workspace.
#pragma once
#include <algorithm>
#include <vector>

#include "buckets.h"
#include "long_conv.h"
#include "partition.h"
#include "sums.h"

namespace hyenarec::cuda {

// The workspace, handed out as a stack. Launches are in order, so what one size needs is given back before the next
// size.
class Workspace {
 public:
  explicit Workspace(void* base) : base_(static_cast<char*>(base)) {}
  template <class T>
  T* take(int64_t count) {
    int64_t at = used_;
    used_ += ceil_div(count * int64_t(sizeof(T)), 256) * 256;
    peak_ = std::max(peak_, used_);
    return base_ ? reinterpret_cast<T*>(base_ + at) : nullptr;
  }
  int64_t used() const { return used_; }
  void give_back(int64_t to) { used_ = to; }
  int64_t peak() const { return peak_; }

 private:
  char* base_;
  int64_t used_ = 0, peak_ = 0;
};

struct DryRun {
  template <class Program>
  void start(const Program&, int64_t) {}
};

// Calls f(Index<log>) for a log from kLog to kTop.
template <int kLog, int kTop, class F>
void with_size(int log, const F& f) {
  if constexpr (kLog < kTop) {
    if (log > kLog) return with_size<kLog + 1, kTop>(log, f);
  }
  f(Index<kLog>{});
}

// log2 of the rows of the largest block that fits in this much shared memory: kLargest on compute capability 8.0, 9.0
// and 10.0, kScarce with the 99 KiB of 8.6, 8.9 and 12.0. 0: too little.
constexpr int top_of(int64_t shared_bytes) {
  return shared_bytes >= Convolve<kLargest>::kSharedBytes ? kLargest
         : shared_bytes >= Convolve<kScarce>::kSharedBytes ? kScarce
                                                           : 0;
}
static_assert(top_of(163 << 10) == kLargest && top_of(99 << 10) == kScarce && top_of(64 << 10) == 0);

// Each share writes its sums over items once; these are added up afterwards. There are as many shares as make one full
// wave of blocks, four warps per scheduler, on 128 multiprocessors: a constant, so that no result depends on how many a
// device has.
constexpr int64_t kWave = int64_t(128) * Size<kLargest>::kElements;

// kTop: log2 of the largest block; filters of more taps are cut into sections.
template <class Machine, int kTop = kLargest, int64_t kShareElements = kWave>
class Schedule {
 public:
  Schedule(const LongConvArgs& args, Machine& machine)
      : a_(args), machine_(machine), workspace_(args.workspace),
        sequences_{args.packed, args.wide_index, int(args.rows), args.starts, args.ends},
        reached_(std::min(args.taps, args.max_length)) {}

  int64_t workspace() const { return workspace_.peak(); }

  void forward() {
    outputs_[0] = a_.out;
    Round round{};
    round.input = {a_.x, a_.pre_gate};
    round.history = -1;
    round.output[0] = {a_.out, a_.post_gate};
    each_size([&](auto log, const Items& items, bool first) {
      if (first && partitioned()) {
        auto* spectra = hold_blocks(round.input, {}, items, nullptr);
        combine(spectra, filter_spectra<kTop>(pairs(), items), items, false, round.output);
      } else {
        convolve<log.value>({round}, items, filter_spectra<log.value>(1, items), items.most, {});
      }
    });
  }

  void backward() {
    outputs_[0] = a_.dx, outputs_[1] = a_.dpre_gate, outputs_[2] = a_.dpost_gate;
    Product u{a_.x, a_.pre_gate}, dy{a_.grad, a_.post_gate};
    Product to_post[2] = {{a_.dpost_gate, a_.grad}, {}};
    Product to_input[2] = {{a_.dx, a_.pre_gate}, {a_.dpre_gate, a_.x}};
    bool need_post = a_.dpost_gate.data, need_input = a_.dx.data || a_.dpre_gate.data;
    bool need_filter = a_.dfilter && a_.taps > 0;
    each_size([&](auto log, const Items& items, bool first) {
      constexpr int kLog = decltype(log)::value;
      bool in_parts = first && partitioned();
      using S = Size<kLog>;
      int64_t row = Tiles<S>::count(a_.channels) * S::kElements;
      int64_t shares = items.most;
      if (need_filter && !in_parts) shares = std::min(shares, std::max<int64_t>(1, kShareElements / row));
      float* sums = a_.dskip ? workspace_.take<float>(std::max<int64_t>(shares, 1) * a_.channels) : nullptr;
      Complex* cross = nullptr;
      if (in_parts) {
        auto spectra = need_post || need_input ? filter_spectra<kTop>(pairs(), items) : Spectra{};
        auto* inputs = need_post || need_filter ? hold_blocks(u, {}, items, nullptr) : nullptr;
        auto* gradients = need_input || need_filter || a_.dskip
                              ? hold_blocks(dy, a_.dskip ? u : Product{}, items, sums)
                              : nullptr;
        if (need_post) combine(inputs, spectra, items, false, to_post);
        if (need_input) combine(gradients, spectra, items, true, to_input);
        if (need_filter) {
          cross = workspace_.take<Complex>(pairs() * row);
          Cross program{gradients, inputs, items, pairs(), row, cross};
          machine_.start(program, program.grid());
        }
      } else {
        std::vector<Round> rounds;
        if (need_post) rounds.push_back({u, -1, false, false, need_filter, false, {to_post[0], {}}, {}});
        if (need_filter) rounds.push_back({u, 0, false, need_post, true, false, {}, {}});
        if (need_input || need_filter || a_.dskip)
          rounds.push_back({dy, 1, true, false, false, need_filter, {to_input[0], to_input[1]},
                            a_.dskip ? u : Product{}});
        auto spectra = need_post || need_input ? filter_spectra<kLog>(1, items) : Spectra{};
        Complex* held = need_filter ? workspace_.take<Complex>(std::max<int64_t>(shares, 1) * row) : nullptr;
        cross = need_filter ? workspace_.take<Complex>(std::max<int64_t>(shares, 1) * row) : nullptr;
        convolve<kLog>(rounds, items, spectra, shares, {held, cross, sums});
        if (need_filter) {
          auto* values = reinterpret_cast<float*>(cross);
          SumRows program{values, items, shares, 2 * row, false, values};
          machine_.start(program, program.grid());
        }
      }
      if (need_filter) filter_gradient<kLog>(cross, in_parts ? pairs() : 1, items, !first);
      if (a_.dskip) {
        SumRows program{sums, items, shares, a_.channels, !first, a_.dskip};
        machine_.start(program, program.grid());
      }
    });
  }

 private:
  struct Sums {
    Complex *held, *partial;
    float* sums;
  };

  static int log_of(int64_t value) {
    int log = 0;
    while (int64_t(1) << log < value) ++log;
    return log;
  }
  int top() const { return std::clamp(log_of(reached_), kSmallest, kTop); }
  // Whether the filter has more taps than the largest block has rows. Sequences that fit in a smaller block do not
  // reach the taps beyond.
  bool partitioned() const { return reached_ > 1 << kTop; }
  // How many pairs of the filter (filter.h) can reach a row.
  int pairs() const {
    int64_t m = 1 << kTop;
    return int(std::min(ceil_div(reached_, m) + 1, ceil_div(a_.max_length, m)));
  }

  // log2 of the block for the shortest sequence that packed rows can hold when none is longer than `max_length`.
  int bottom() const { return std::clamp(log_of(a_.rows - (a_.sequences - 1) * a_.max_length), kSmallest, top()); }

  // Calls f(Index<log>, items, whether it is the first) for the one size of padded input, or for every size that packed
  // sequences may have.
  template <class F>
  void each_size(const F& f) {
    auto visit = [&](int log, const Items& items) {
      int64_t mark = workspace_.used();
      with_size<kSmallest, kTop>(log, [&](auto size) { f(size, items, log == top()); });
      workspace_.give_back(mark);
    };
    if (!a_.packed) {
      int per_sequence = int(ceil_div(a_.rows, int64_t(1) << top()));
      return visit(top(), {nullptr, nullptr, std::max(per_sequence, 1), int(a_.sequences) * per_sequence});
    }
    int count = top() - bottom() + 1;
    AssignBuckets assign{sequences_,         int(a_.sequences),                          {}, count, a_.dtype,
                         int(a_.channels), {outputs_[0], outputs_[1], outputs_[2]}};
    int64_t most[AssignBuckets::kMost];
    for (int i = 0; i < count; ++i) {
      int log = top() - i;
      int64_t points = int64_t(1) << log;
      // Sequences of a size have more than M/2 rows, except at the smallest size: more than half of their blocks is
      // filled.
      most[i] = i == 0 ? a_.sequences + a_.rows / points : a_.sequences;
      most[i] = std::min(most[i], log == kSmallest ? a_.rows : 2 * a_.rows / points);
      int above = log == bottom() ? 0 : int(points / 2);
      assign.buckets[i] = {above, int(points), int(most[i]), i == 0, workspace_.take<Item>(most[i]),
                           workspace_.take<int>(1)};
    }
    machine_.start(assign, count);
    for (int i = 0; i < count; ++i)
      visit(top() - i, {assign.buckets[i].list, assign.buckets[i].count, 1, int(most[i])});
  }

  template <int kLog>
  Spectra filter_spectra(int pairs, const Items& items) {
    using S = Size<kLog>;
    int64_t tiles = Tiles<S>::count(a_.groups) * pairs;
    auto* out = workspace_.take<Complex>(tiles * S::kElements);
    machine_.start(FilterSpectrum<kLog>{a_.filter, int(a_.groups), int(a_.taps), items, out}, tiles);
    return {out, int(a_.channels), int(a_.groups)};
  }

  template <int kLog>
  void convolve(const std::vector<Round>& rounds, const Items& items, const Spectra& spectra, int64_t shares,
                const Sums& sums) {
    Convolve<kLog> program{a_.dtype, int(a_.channels), int(shares), int(rounds.size()), sequences_, items, spectra,
                           a_.skip, {}, sums.held, sums.partial, sums.sums};
    if (rounds.empty()) return;
    std::copy(rounds.begin(), rounds.end(), program.rounds);
    machine_.start(program, Tiles<Size<kLog>>::grid(a_.channels, shares));
  }

  // The spectrum of every item's own block, without history.
  Complex* hold_blocks(const Product& input, const Product& other, const Items& items, float* sums) {
    using S = Size<kTop>;
    auto* held = workspace_.take<Complex>(items.most * Tiles<S>::count(a_.channels) * S::kElements);
    convolve<kTop>({{input, 0, false, false, true, false, {}, other}}, items, {}, items.most, {held, nullptr, sums});
    return held;
  }

  void combine(const Complex* blocks, const Spectra& spectra, const Items& items, bool conjugate,
               const Product (&output)[2]) {
    Combine<kTop> program{a_.dtype, int(a_.channels), pairs(), conjugate, sequences_, items, blocks, spectra,
                          a_.skip, {output[0], output[1]}};
    machine_.start(program, Tiles<Size<kTop>>::grid(a_.channels, items.most));
  }

  // From cross spectra of channels to the gradient of the groups' taps.
  template <int kLog>
  void filter_gradient(Complex* cross, int pairs, const Items& items, bool add) {
    using S = Size<kLog>;
    int64_t tiles = Tiles<S>::count(a_.groups);
    if (a_.groups < a_.channels) {
      auto* sums = workspace_.take<Complex>(pairs * tiles * S::kElements);
      SumGroups program{cross, int(a_.channels), int(a_.groups), pairs, S::kChannels, S::kElements, sums};
      machine_.start(program, program.grid());
      cross = sums;
    }
    int64_t parts = add ? 1 : ceil_div(a_.taps, S::kPoints);
    machine_.start(FilterGradient<kLog>{cross, int(a_.groups), int(a_.taps), pairs, int(reached_), add, items,
                                        a_.dfilter},
                   parts * tiles);
  }

  const LongConvArgs& a_;
  Machine& machine_;
  Workspace workspace_;
  Sequences sequences_;
  Rows outputs_[AssignBuckets::kOutputs];  // outputs that this call writes
  int64_t reached_;  // taps that can reach a row
};

}  // namespace hyenarec::cuda
