// The gated convolution with Legendre filters in block low-rank form on a CUDA device: the interface between the torch
// side and the kernels, without types of torch or CUDA, as in long_conv.h.
//
//     u = pre_gate * x,   y[t, d] = sum_tau h[g(d), tau] u[t - tau, d] + skip[d] u[t, d],   out = post_gate * y
//     h[g, tau] = exp(-decay[g] tau / K) sum_n coefficients[g, n] basis_n(tau),   0 <= tau < K
//
// Rows are cut into tiles of 256. Inside a tile, and where the filter's end cuts a pair of tiles, every tap is applied;
// between other tiles the filter is a matrix of small rank (docs/algorithm.md). Parameters, arithmetic outside matrix
// products and gradients of parameters are float32. Nothing is read from the device, waited for or allocated.
#pragma once
#include <cstdint>

#include "../common/types.h"

namespace hyenarec {

// A level: nodes of `chunk` rows, `fan` of them in a node of the next level (0: there is none), each with `rank`
// moments. Pairs of nodes meet here at distances 1 to near_pairs and at the far_pairs distances from far_first on.
struct BlockLevel {
  int chunk = 0, fan = 0, rank = 0, near_pairs = 0, far_first = 0, far_pairs = 0;
};

struct LegendreBlocksArgs {
  Dtype dtype = Dtype::f32;  // f32, bf16 or f16
  // Padded (B, L, D): `sequences` is B, `rows` is L; packed (T, D): `rows` is T. Sequence s is rows [starts[s],
  // ends[s]); rows of no sequence are not read, and are written as zero.
  bool packed = false;
  int64_t sequences = 0, rows = 0, channels = 0, groups = 0, terms = 0, horizon = 0;
  int64_t max_length = 0;                         // no sequence is longer: L, or T where the host knows no better
  const void *starts = nullptr, *ends = nullptr;  // (sequences,) contiguous, on the device; null: 0 and `rows`
  bool wide_index = false;                        // starts and ends are int64, otherwise int32
  Rows x, pre_gate, post_gate;                    // a gate whose data is null is absent; channels are adjacent
  const float* coefficients = nullptr;            // (groups, terms)
  const float* decay = nullptr;                   // (groups,) or null
  const float* skip = nullptr;                    // (channels,) or null
  // The plan (backends/cuda/block_plan.py): levels, of which the first is the tiles, and on the device, one after the
  // other (R is the rank of the first level, rounded up to a multiple of 16; the first three exist only with levels):
  //     basis (256, R)                                            local polynomials, zero beyond the rank
  //     down (4, R of columns, R)                                 from these to the local polynomials of 64 rows
  //     columns (64, R)                                           local polynomials of 64 rows
  //     samples (terms, tap rows + table rows)                    from coefficients to taps and tables
  //     aged, likewise, where there is a decay                    the same for the filter times lag / K
  //     offsets (tap rows + table rows,)                          a row is multiplied by exp(-decay offset / K)
  //     transfers (fan, rank, rank above) of each level but the last
  // Tap rows are kTile taps from lag 0 on, and 2 kTile from the lag on where the filter's end begins to cut pairs of
  // tiles (`edge_first`).
  int num_levels = 0;
  BlockLevel levels[8];
  const float* constants = nullptr;
  Rows out;
  // Backward only. Outputs that are null are not computed.
  Rows grad, dx, dpre_gate, dpost_gate;
  float *dcoefficients = nullptr, *ddecay = nullptr, *dskip = nullptr;
  void* workspace = nullptr;  // at least `legendre_blocks_workspace` bytes on the device, aligned to 256
};

constexpr int kMostBlockLevels = 8;

// legendre_blocks_samples: the rows of samples, of taps and of tables. legendre_blocks_constants: the floats of all
// constants.
inline int64_t legendre_blocks_samples(const LegendreBlocksArgs& args) {
  int64_t rows = 3 * 256;
  for (int i = 0; i < args.num_levels; ++i) {
    const BlockLevel& level = args.levels[i];
    rows += int64_t(level.near_pairs + level.far_pairs) * level.rank * level.rank;
  }
  return rows;
}
inline int64_t legendre_blocks_constants(const LegendreBlocksArgs& args) {
  int64_t count = legendre_blocks_samples(args) * ((args.decay ? 2 : 1) * args.terms + 1);
  if (args.num_levels) {
    int64_t ranks = (args.levels[0].rank + 15) / 16 * 16;
    count += (256 + 4 * ranks + 64) * ranks;
  }
  for (int i = 0; i + 1 < args.num_levels; ++i)
    count += int64_t(args.levels[i].fan) * args.levels[i].rank * args.levels[i + 1].rank;
  return count;
}

int64_t legendre_blocks_workspace(const LegendreBlocksArgs& args, bool backward);

// Null, or why the call could not be made: one line, valid until this thread's next call.
const char* legendre_blocks_forward(const LegendreBlocksArgs& args, void* stream);
const char* legendre_blocks_backward(const LegendreBlocksArgs& args, void* stream);

}  // namespace hyenarec
