// The second pass of backward: all gradients of a tile's rows from one reading, and the gradient of the taps inside
// tiles.
//
// y is recomputed for the post-gate's gradient, and du = H^T dy for those of x and pre-gate; the taps' gradient is the
// correlation of dy with u. At the filter's end that is a launch of its own, because few tiles have it.
#pragma once
#include "block_forward.h"

namespace hyenarec::cuda {

template <class T, bool kEdges>
struct ConvolveTilesBackward {
  using Shape = TileBlock<T>;
  using Products = Toeplitz<T>;
  static constexpr int kThreads = Shape::kThreads, kBlocks = kEdges || kScarceShared || sizeof(T) == 4 ? 1 : 2;
  TileConvolution<T, kEdges> with;
  Product u, dy;
  Product of_u[2], of_dy[2];  // outputs and their factors, or null: the post-gate's gradient; those of x and pre-gate
  TilesBetween<T> earlier, later;
  float* lags;                // (shares, channels, 256) or null

  HYENAREC_DEVICE int64_t grid() const { return with.pass.grid(); }
  HYENAREC_DEVICE int shared_bytes() const { return with.shared_bytes(2); }

  template <class Block>
  HYENAREC_DEVICE void operator()(Block& block, int index, void* memory) const {
    const auto shared = with.layout(memory);
    const TilePass<T>& pass = with.pass;
    const Tile tile = pass.tile(index);
    const int share = index / pass.groups();
    Columns& columns = *shared.columns;
    const Pool<T> inputs = pass.pool(shared.pools), gradients = pass.pool(shared.pools + pass.pool_bytes());
    block.phase([&](int thread) { with.begin(thread, shared, tile); });
    for (int round = share; round < pass.rounds(); round += pass.shares) {
      auto place = [&](int distance) {
        block.phase([&](int thread) {
          if (thread < kRoundColumns) pass.place(columns, thread, round, distance);
        });
      };
      auto load = [&](int distance, const Pool<T>& pool, const Product& from) {
        place(distance);
        block.phase([&](int thread) { fill(thread, kThreads, tile, columns, pool, from); });
      };
      place(0);
      block.phase([&](int thread) {
        fill(thread, kThreads, tile, columns, inputs, u);
        fill(thread, kThreads, tile, columns, gradients, dy);
      });
      if (lags)
        block.warps([&](const Warp& warp) {
          for (int c = warp.number; pass.has(tile, c); c += Shape::kWarps)
            Products::correlate(warp, {gradients.slot(c, 0), columns.after, nullptr, shared.zeros},
                                {inputs.slot(c, 0), columns.before, nullptr, shared.zeros}, kReach, 0,
                                lags + (int64_t(share) * tile.channels + tile.first + c) * kTile, kTile, round != share);
        });
      if (of_u[0].value.data) {
        with.template convolve<false>(block, shared, tile, inputs, round, earlier, earlier.moments,
                                      [&](int distance) { load(distance, inputs, u); });
        if (kEdges) place(0);
        block.phase([&](int thread) { drain(thread, kThreads, tile, columns, inputs, of_u); });
      }
      if (of_dy[0].value.data || of_dy[1].value.data) {
        with.template convolve<true>(block, shared, tile, gradients, round, later, later.moments,
                                     [&](int distance) { load(-distance, gradients, dy); });
        if (kEdges) place(0);
        block.phase([&](int thread) { drain(thread, kThreads, tile, columns, gradients, of_dy); });
      }
    }
    if (lags && share >= pass.rounds()) pass.clear(block, tile, lags, share, kTile);
  }
};

// The gradient of the 512 taps of the filter's end, from the pairs of tiles that it cuts.
template <class T>
struct CorrelateTiles {
  using Shape = TileBlock<T>;
  using Products = Toeplitz<T>;
  static constexpr int kThreads = Shape::kThreads, kBlocks = sizeof(T) == 4 ? 1 : 2;
  TilePass<T> pass;
  int edges, distance;  // as in TapTables
  Product u, dy;
  float* lags;  // (shares, channels, 512)

  HYENAREC_DEVICE int64_t grid() const { return pass.grid(); }
  HYENAREC_DEVICE int shared_bytes() const { return Shape::kZeros + Shape::kColumns + 2 * pass.pool_bytes(); }

  template <class Block>
  HYENAREC_DEVICE void operator()(Block& block, int index, void* memory) const {
    auto* shared = static_cast<char*>(memory);
    auto& columns = *reinterpret_cast<Columns*>(shared + Shape::kZeros);
    char* pools = reinterpret_cast<char*>(&columns + 1);
    const Pool<T> inputs = pass.pool(pools), gradients = pass.pool(pools + pass.pool_bytes());
    const Tile tile = pass.tile(index);
    const int share = index / pass.groups();
    auto load = [&](int round, int before, const Pool<T>& pool, const Product& from) {
      block.phase([&](int thread) {
        if (thread < kRoundColumns) pass.place(columns, thread, round, before);
        if (thread < Shape::kZeros / 4) reinterpret_cast<uint32_t*>(shared)[thread] = 0;
      });
      block.phase([&](int thread) { fill(thread, kThreads, tile, columns, pool, from); });
    };
    for (int round = share; round < pass.rounds(); round += pass.shares) {
      load(round, 0, gradients, dy);
      for (int edge = 0; edge < edges; ++edge) {
        load(round, distance + edge, inputs, u);
        block.warps([&](const Warp& warp) {
          for (int c = warp.number; pass.has(tile, c); c += Shape::kWarps)
            Products::correlate(warp, {gradients.slot(c, 0), columns.after, nullptr, shared},
                                {inputs.slot(c, 0), columns.before, columns.after, shared}, kReach,
                                TapTables::ahead(edge),
                                lags + (int64_t(share) * tile.channels + tile.first + c) * TapTables::kEdgeTaps,
                                TapTables::kEdgeTaps, edge > 0 || round != share);
        });
      }
    }
    if (share >= pass.rounds()) pass.clear(block, tile, lags, share, TapTables::kEdgeTaps);
  }
};

}  // namespace hyenarec::cuda
