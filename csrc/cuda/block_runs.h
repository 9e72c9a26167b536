// A call of legendre_blocks.h as runs. Moments are needed during a call only, so a large batch is cut, by sequences and
// by channels, into runs that use the same memory one after the other.
#pragma once
#include "block_schedule.h"

namespace hyenarec::cuda {

// Null, or why a call cannot be made.
inline const char* wrong_blocks(const LegendreBlocksArgs& args) {
  constexpr int64_t kMost = 1 << 30;  // positions of two ends are added in 32 bits; offsets in memory have 64
  if (args.dtype == Dtype::f64) return "x: expected float32, bfloat16 or float16";
  if (args.rows >= kMost || args.sequences >= kMost || args.horizon >= kMost || args.channels >= kMost)
    return "x: more than 2^30 rows, sequences, channels or taps";
  if (!args.packed && args.sequences * ceil_div(args.rows, kTile) >= kMost) return "x: more than 2^30 tiles";
  if (args.groups < 1 || args.channels % args.groups) return "coefficients: its groups do not divide the channels";
  if (args.num_levels > kMostBlockLevels) return "levels: too many";
  for (int i = 0; i < args.num_levels; ++i)
    if (args.levels[i].rank < 1 || args.levels[i].rank > kMostRank || (i == 0 && args.levels[i].chunk != kTile))
      return "levels: ranks from 1 to 32 on chunks of 256 rows and more are served";
  return nullptr;
}

// Runs are cut until moments take kRunShare of the outputs' bytes, but not below kRunLeast elements or kRunChannels
// channels.
constexpr double kRunShare = 0.14;
constexpr int64_t kRunLeast = int64_t(1) << 24, kRunChannels = 64;
// The most thread blocks of a pass, four on each of 132 multiprocessors: a constant, so that no sum depends on how many
// a device has.
constexpr int kPassBlocks = 528;

// Makes the call by launches on `machine`. Returns the bytes of workspace.
template <class Machine>
int64_t run_blocks(const LegendreBlocksArgs& args, bool backward, int shared, Machine& machine,
                   int64_t least = kRunLeast, int64_t slice = kRunChannels, int blocks = kPassBlocks) {
  int64_t size = args.dtype == Dtype::f32 ? 4 : 2, sequences = args.packed ? 1 : args.sequences;
  int64_t elements = sequences * args.rows * args.channels;
  double moments = args.num_levels ? (backward ? 4.0 : 2.0) * 1.15 * args.levels[0].rank * 4 / kTile : 0;
  if (args.num_levels == 1 && !backward)  // only operands of products, and as many again for tiles before a share's own
    moments = 2.0 * double(ceil_div(args.levels[0].rank, 16) * 16 * (args.dtype == Dtype::bf16 ? 2 : 4)) / kTile;
  int outputs = backward ? bool(args.dx.data) + bool(args.dpre_gate.data) + bool(args.dpost_gate.data) : 1;
  int64_t count = int64_t(moments / (kRunShare * double(size * std::max(outputs, 1))) + 1);
  count = std::max<int64_t>(std::min(count, elements / least), 1);
  int64_t each = std::max<int64_t>(ceil_div(sequences, count), 1), parts = ceil_div(sequences, each);
  int64_t width = args.channels;
  if (parts < count) width = std::max<int64_t>(args.channels * parts / count / slice, 1) * slice;
  int64_t bytes = 0;
  bool start = true;
  auto moved = [&](Rows rows, int64_t batch, int64_t channel) {
    if (rows.data) rows.data = static_cast<char*>(rows.data) + (batch * rows.batch_stride + channel) * size;
    return rows;
  };
  auto index = [&](const void* values, int64_t s) -> const void* {
    return values ? static_cast<const char*>(values) + s * (args.wide_index ? 8 : 4) : nullptr;
  };
  for (int64_t channel = 0; channel < args.channels; channel += width)
    for (int64_t first = 0; first == 0 || first < sequences; first += each) {
      LegendreBlocksArgs part = args;
      if (!args.packed) {
        part.sequences = std::min(each, sequences - first);
        part.starts = index(args.starts, first), part.ends = index(args.ends, first);
      }
      int64_t batch = args.packed ? 0 : first;
      for (Rows LegendreBlocksArgs::*rows :
           {&LegendreBlocksArgs::x, &LegendreBlocksArgs::pre_gate, &LegendreBlocksArgs::post_gate,
            &LegendreBlocksArgs::out, &LegendreBlocksArgs::grad, &LegendreBlocksArgs::dx,
            &LegendreBlocksArgs::dpre_gate, &LegendreBlocksArgs::dpost_gate})
        part.*rows = moved(args.*rows, batch, channel);
      if (args.skip) part.skip += channel;
      if (args.dskip) part.dskip += channel;
      Channels channels{int(channel), int(std::min(width, args.channels - channel)), int(args.channels),
                        int(args.groups)};
      auto go = [&](auto type) {
        BlockRun<decltype(type), Machine> run(part, channels, !start, first > 0, shared, blocks, machine);
        backward ? run.backward() : run.forward();
        bytes = std::max(bytes, run.workspace());
      };
      switch (args.dtype) {
        case Dtype::bf16: go(Bfloat16{}); break;
        case Dtype::f16: go(Float16{}); break;
        default: go(Float32{});
      }
      start = false;
    }
  return bytes;
}

}  // namespace hyenarec::cuda
