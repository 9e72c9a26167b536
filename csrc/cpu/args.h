// The arguments that the torch side passes to the kernels: plain structs that need neither torch nor an instruction
// set.
#pragma once
#include <cstdint>

#include "../common/types.h"

namespace hyenarec {

// One sequence: rows [start, start + length) of a batch row (packed input is one batch row).
struct Sequence {
  int64_t batch, start, length;
};

// One level of the block low-rank form (docs/algorithm.md). A chunk has `chunk` rows and `rank` local polynomials;
// `fan` chunks make a parent (at the top level the whole sequence is the parent). A block keeps its entries (r, s) with
// r + s < degree and is built from filter values at `nodes` lags. This level handles pairs of chunks I, J at distance
// k = I - J: inside one parent for k in [1, near_pairs] and, where the filter ends inside the sequence, the `far_pairs`
// distances from far_first on, which no higher level covers.
struct Level {
  int64_t chunk, fan, rank, degree, nodes, near_pairs, far_first, far_pairs;
  int64_t sample_row;     // where this level's samples begin: (near_pairs + far_pairs) x nodes filter values
  const void* moments;    // folded basis: even polynomials, half x ceil(rank/2), then odd ones, half x floor(rank/2)
  const void* from_nodes; // entries x (nodes + 1) / 2: maps filter values at mirrored nodes of a run of lags to the
                          // block's kept entries: first their sums (even r + s), then their differences (odd r + s)
  int64_t half;           // rows of the folded basis: chunk/2 at the lowest level, fan_below * rank_below / 2 above
};

constexpr int kMaxLevels = 8, kMaxRank = 40, kMaxNodes = 2 * kMaxRank + 4;
constexpr int kMaxPage = 128;  // rows of a compact state's lowest chunk, and moments of a chunk
constexpr int kRingPage = 8;   // rows of a page in a ring of the inputs themselves

struct Plan {
  int64_t horizon;    // K: taps of the filter
  int64_t length;     // rows of the longest sequence that it serves
  int64_t chunk;      // rows a lane of the direct part handles
  int64_t near_taps;  // lags [0, near_taps) are sampled one by one
  int64_t far_lag;    // lags [far_lag, far_lag + far_taps) too: the filter's end, where it lies inside the sequence
  int64_t far_taps;   // 0: the filter outlives every sequence
  int64_t far_row;    // which sample is lag far_lag; 0 (and far_lag 0): the near taps hold every far lag
  int64_t num_samples;
  const void* lags;  // (num_samples,): the lag of each sample, in the arithmetic type
  int num_levels;
  Level levels[kMaxLevels];
};

struct ConvArgs {
  const Plan* plan;
  const Sequence* sequences;
  int64_t num_sequences;
  int64_t channels;
  int64_t padded_length;  // rows of a batch row, whose padding is written as zeros; 0 for packed input
  int64_t threads;        // threads that can share the work
  Dtype dtype;            // of x, gates and outputs; other values are of the arithmetic type: float32 (float64 for f64)
  Rows x, pre_gate, post_gate, out;
  const void* filter;  // (num_samples, channels): its values at the plan's lags; with a basis: (channels, terms)
  const void* basis;   // (num_samples, terms): each term's values at the plan's lags; or null
  int64_t terms;
  const void* rate;    // (channels,): each tap is multiplied by exp(-rate * lag), which `filter` leaves out; or null
  const void* skip;    // (channels,) or null
  // Backward only. Outputs that are null are not computed.
  Rows grad, dx, dpre_gate, dpost_gate;
  void* dfilter;  // shaped as `filter`
  void* drate;    // (channels,)
  void* dskip;    // (channels,)
};

struct ShortConvArgs {
  const Sequence* sequences;
  int64_t num_sequences, channels, padded_length, width;
  int64_t dim;  // below `channels`: the first `dim` outputs multiply the last `dim`, and `out` has the products
  bool silu;    // only where no outputs are multiplied
  Dtype dtype;
  Rows x, out, grad, dx;
  Rows rest, grad_rest;  // the outputs between the two that are multiplied
  const void* weight;  // (width, channels), arithmetic type
  const void* bias;    // (channels,) or null
  void* dweight;       // (width, channels)
  void* dbias;         // (channels,)
};

// The streaming step: one more event of each sequence. x, gates and out have one row per sequence.
struct StepArgs {
  int64_t num_sequences, channels, slots;
  Dtype dtype;  // of x, gates and out
  Rows x, pre_gate, post_gate, out;
  Rows history;          // (num_sequences, slots, channels), arithmetic type: rings, read and written
  const void* taps;      // (slots + 1, channels), arithmetic type, the largest lag first
  const int64_t* steps;  // rows that each ring has taken since its oldest row was in slot 0
};

// One level of a compact state, as hyenarec_kernels/nn/compact.py describes it; tables are those of one filter.
struct CompactPart {
  void* data;
  int64_t stride;  // elements between sequences; those of one sequence are contiguous
};
struct CompactLevel {
  int64_t chunk, rank, slots;
  const void* basis;   // (chunk, rank)
  const void* enter;   // (chunk, channels)
  const void* leave;   // (chunk, channels)
  const void* blocks;  // (slots, rank, rank, channels)
  CompactPart sums, incoming;  // (rank, channels) per sequence; of levels above the lowest
  CompactPart moments;         // (slots, rank, channels) per sequence
};

// The streaming step through one filter, with a state in pages. With levels (a compact state), the page is the lowest
// chunk that is being filled; without levels, the inputs themselves are kept in a ring of pages. Everything without a
// named dtype is of the arithmetic type.
struct CompactArgs {
  using Part = CompactPart;
  int64_t num_sequences, channels;
  Dtype dtype;  // of x, gates and out
  Rows x, pre_gate, post_gate, out;
  int64_t rows, slots;   // rows of a page; rows of all pages of a sequence together
  CompactPart page;      // (slots, channels) per sequence
  int64_t taps;          // with levels, equal to `rows`; otherwise at most `slots`
  const void* near;      // (taps, channels), the largest lag first
  const int64_t* steps;  // events before this one
  int64_t num_levels;
  CompactLevel levels[kMaxLevels];
  bool half_moments;     // moments are bfloat16
};

// What is applied to the last gate; `none` is a mixer without gates.
enum class Gate { none, identity, sigmoid, silu };

// The streaming step of a whole mixer. Everything is of the arithmetic type.
struct MixerArgs {
  struct Matrix {
    const void* data;
    int64_t row_stride, column_stride;
  };
  int64_t num_sequences, width, dim, num_gates, filters, short_width;
  Dtype dtype;  // float32 or float64
  Gate gate;
  Rows x, out;            // (num_sequences, width) and (num_sequences, dim)
  Matrix w_in, w_out;     // (width, (num_gates + 1) dim) and (dim, dim); multiplied from the left: x @ w_in
  CompactPart projected;  // (short_width - 1, (num_gates + 1) dim) per sequence: a ring
  const void* short_taps; // (short_width, (num_gates + 1) dim), the largest lag first
  const void* short_bias; // ((num_gates + 1) dim,)
  bool is_compact;
  const StepArgs* exact;       // one per filter, in one of these two; the kernel itself sets x, gates and out
  const CompactArgs* compact;
  int64_t* steps;              // events before this one; the kernel increments it
};

// What surrounds a mixer in a pre-norm block: x + mixer(norm(x)), then the same with a feed-forward. As MixerArgs.
struct BlockArgs {
  struct Norm {
    const void *weight, *bias;  // (dim,)
  };
  int64_t hidden;
  double eps;  // of both norms
  Norm before_mixer, before_feed_forward;
  MixerArgs::Matrix up, down;        // (dim, hidden) and (hidden, dim), multiplied from the left
  const void *up_bias, *down_bias;   // (hidden,) and (dim,)
};

// Dropout, with probability dropped / 256, of `count` contiguous elements or of their GELU; with `grad`, its gradient.
struct DropoutArgs {
  int64_t count;
  Dtype dtype;
  uint64_t seed;
  int dropped;
  bool gelu;
  const void* x;     // not read for a gradient without GELU
  const void* grad;  // or null
  void* out;
};

// Runs body(context, begin, end) over a partition of [0, count).
using Body = void (*)(void* context, int64_t begin, int64_t end);
using ParallelFor = void (*)(int64_t count, Body body, void* context);

// One instruction set's kernels.
struct Kernels {
  const char* name;
  void (*conv_forward)(const ConvArgs&, ParallelFor);
  void (*conv_backward)(const ConvArgs&, ParallelFor);
  void (*conv_last)(const ConvArgs&, ParallelFor);
  void (*conv_last_backward)(const ConvArgs&, ParallelFor);
  void (*conv_step)(const StepArgs&, ParallelFor);
  void (*compact_step)(const CompactArgs&, ParallelFor);
  void (*mixer_step)(const MixerArgs&, ParallelFor);
  void (*block_step)(const MixerArgs&, const BlockArgs&, ParallelFor);
  void (*short_conv)(const ShortConvArgs&, bool backward, ParallelFor);
  void (*dropout)(const DropoutArgs&, ParallelFor);
  double (*peak)(int64_t steps, ParallelFor);  // multiply-adds done by a register-only loop
};

namespace avx512 { extern const Kernels kernels; }
namespace avx2 { extern const Kernels kernels; }
namespace portable { extern const Kernels kernels; }
void count_scratch(int64_t bytes);  // records an allocation, or its release with a negative size
int64_t scratch_peak();             // most bytes held at once since the last call

const Kernels& kernels();  // the one for this machine, or the one HYENAREC_CPU_ISA names

}  // namespace hyenarec
