// What a call of legendre_conv.h launches: the taps, where packed sequences lie, the products, and backward the sums.
#pragma once
#include <array>

#include "last_row.h"
#include "legendre_conv.h"
#include "schedule.h"
#include "taps.h"
#include "toeplitz_conv.h"

namespace hyenarec::cuda {

// The most blocks of one launch: four on each of 132 multiprocessors. A constant, so that no sum depends on how many a
// device has.
constexpr int64_t kToeplitzBlocks = 528;

template <class Machine, int64_t kMostBlocks = kToeplitzBlocks>
class LegendreSchedule {
 public:
  // `shared`: bytes of shared memory that a block can have.
  LegendreSchedule(const LegendreConvArgs& args, int shared, Machine& machine)
      : args_(args), a_(args.rows), shared_(shared), machine_(machine), workspace_(args.rows.workspace),
        taps_(int(legendre_conv_taps(args))), sequences_{a_.packed, a_.wide_index, int(a_.rows), a_.starts, a_.ends} {}

  int64_t workspace() const { return workspace_.peak(); }

  void forward() {
    const float* filter = taps();
    if (args_.last_only) {
      last_row(filter, int(a_.sequences), nullptr);
      return;
    }
    Items items = columns({a_.out, {}, {}});
    with_dtype(a_.dtype, [&](auto type) {
      auto program = products<decltype(type), false>(filter, items);
      program.of_input[0] = {a_.out, a_.post_gate};
      machine_.start(program, program.grid());
    });
  }

  void backward() {
    const float* filter = taps();
    bool need_sums = args_.dfilter || args_.ddecay || args_.dskip;
    int64_t row = a_.channels * taps_, shares;
    float* sums = nullptr;
    auto take_sums = [&](int64_t count) {
      shares = std::max<int64_t>(count, 1);
      if (need_sums) sums = workspace_.take<float>(shares * row);
      return sums;
    };
    if (args_.last_only) {
      if (a_.packed) columns({a_.dx, a_.dpre_gate, {}});
      int64_t tiles = ceil_div(a_.channels, LastRow::kChannels);
      take_sums(need_sums ? std::min(a_.sequences, std::max<int64_t>(kMostBlocks / tiles, 1)) : a_.sequences);
      last_row(filter, int(shares), sums);
    } else {
      Items items = columns({a_.dx, a_.dpre_gate, a_.dpost_gate});
      with_dtype(a_.dtype, [&](auto type) {
        auto program = products<decltype(type), true>(filter, items);
        program.gradient = {a_.grad, a_.post_gate};
        program.of_input[0] = {a_.dpost_gate, a_.grad};
        program.of_gradient[0] = {a_.dx, a_.pre_gate};
        program.of_gradient[1] = {a_.dpre_gate, a_.x};
        program.sums = take_sums(program.shares);
        machine_.start(program, program.grid());
      });
    }
    if (!need_sums) return;
    auto* total = workspace_.take<float>(row);
    SumRows sum{sums, {nullptr, nullptr, 1, int(shares)}, shares, row, false, total};
    machine_.start(sum, sum.grid());
    machine_.start(FilterGradients{made_by(), int(a_.channels), taps_, total, filter, args_.dfilter, args_.ddecay,
                                   args_.dskip, args_.skip_dtype},
                   a_.groups);
  }

 private:
  Filter made_by() const {
    return {args_.parameters, args_.filter, args_.decay, int(a_.groups), int(args_.terms), args_.horizon};
  }

  // The taps that can reach a row: (groups, taps) float32.
  const float* taps() {
    if (args_.horizon == 0 && args_.parameters == Dtype::f32 && args_.terms == taps_)
      return static_cast<const float*>(args_.filter);
    auto* out = workspace_.take<float>(a_.groups * taps_);
    MakeTaps program{made_by(), taps_, out};
    machine_.start(program, program.grid());
    return out;
  }

  int64_t columns_of_longest() const { return std::max<int64_t>(ceil_div(a_.max_length, kColumnRows), 1); }

  // The columns of all sequences; where packed ones do not cover the rows, the rest of `outputs` becomes zero.
  Items columns(const std::array<Rows, AssignBuckets::kOutputs>& outputs) {
    if (!a_.packed) {
      int each = int(std::max<int64_t>(ceil_div(a_.rows, kColumnRows), 1));
      return {nullptr, nullptr, each, int(a_.sequences) * each};
    }
    int64_t most = std::min(a_.sequences + a_.rows / kColumnRows, a_.rows);
    AssignBuckets assign{sequences_, int(a_.sequences), {}, 1, a_.dtype, int(a_.channels), {}};
    std::copy(outputs.begin(), outputs.end(), assign.outputs);
    assign.buckets[0] = {0, kColumnRows, int(most), true, workspace_.take<Item>(most), workspace_.take<int>(1)};
    machine_.start(assign, 1);
    return {assign.buckets[0].list, assign.buckets[0].count, 1, int(most)};
  }

  template <class T, bool kBackward>
  ToeplitzConv<T, kBackward> products(const float* filter, const Items& items) {
    ToeplitzConv<T, kBackward> program{};
    program.channels = int(a_.channels), program.groups = int(a_.groups), program.taps = taps_;
    int64_t longest = columns_of_longest();
    program.width = kRoundColumns, program.halo = int(std::min(ceil_div(taps_ - 1, kColumnRows), longest - 1));
    if (!a_.packed && longest <= kRoundColumns)  // whole sequences
      program.width = int(kRoundColumns / longest * longest), program.halo = 0;
    program.vectors = 2;
    if (program.shared_bytes() > shared_) program.vectors = 1;
    int64_t rounds = ceil_div(items.most, program.width);
    program.shares = int(std::max<int64_t>(std::min(rounds, kMostBlocks / program.tiles()), 1));
    program.wide = wide(sizeof(T));
    program.sequences = sequences_, program.items = items;
    program.filter = filter, program.skip = args_.skip, program.skip_dtype = args_.skip_dtype;
    program.input = {a_.x, a_.pre_gate};
    return program;
  }

  bool wide(int64_t size) const {
    bool aligned = true;
    for (const Rows* t : {&a_.x, &a_.pre_gate, &a_.post_gate, &a_.out, &a_.grad, &a_.dx, &a_.dpre_gate, &a_.dpost_gate})
      aligned &= (reinterpret_cast<uintptr_t>(t->data) | uint64_t(t->batch_stride * size) |
                  uint64_t(t->row_stride * size)) % sizeof(Vector) == 0;
    return aligned;
  }

  void last_row(const float* filter, int shares, float* sums) {
    LastRow program{a_.dtype, int(a_.channels), int(a_.groups), taps_, int(a_.sequences), shares, sequences_, filter,
                    args_.skip, args_.skip_dtype, a_.x, a_.pre_gate, a_.post_gate, a_.out, a_.grad, a_.dx, a_.dpre_gate,
                    a_.dpost_gate, sums};
    machine_.start(program, a_.sequences == 0 && !sums ? 0 : program.grid());
  }

  const LegendreConvArgs& args_;
  const LongConvArgs& a_;
  int shared_;
  Machine& machine_;
  Workspace workspace_;
  int taps_;
  Sequences sequences_;
};

}  // namespace hyenarec::cuda

namespace hyenarec {

inline int64_t legendre_conv_taps(const LegendreConvArgs& args) {
  return std::min(args.horizon ? args.horizon : args.terms, std::max<int64_t>(args.rows.max_length, 1));
}

}  // namespace hyenarec
