// The second pass: the part inside each tile, what comes from other tiles, the filter's end, and the gates. It is the
// only pass where tiles have one level and every share has at least as many rounds as a tile meets. Then a block goes
// through its rounds in order, from the first round that its first tile meets on, and computes each round's moments
// before they are needed. No block waits for another one.
#pragma once
#include "block_between.h"

namespace hyenarec::cuda {

// A pass of Toeplitz products: what a block has in shared memory, and the products themselves. kEdges: the filter's end
// cuts pairs of tiles, whose products are added in registers.
template <class T, bool kEdges>
struct TileConvolution {
  using Shape = TileBlock<T>;
  using Products = Toeplitz<T>;
  TilePass<T> pass;
  TapTables taps;
  Basis basis;
  const float* rates;

  HYENAREC_DEVICE int near_words() const { return pass.tile_channels() * Products::table_words(kTile); }
  HYENAREC_DEVICE int edge_words() const {
    return kEdges ? pass.tile_channels() * Products::table_words(TapTables::kEdgeTaps) : 0;
  }
  HYENAREC_DEVICE int nu_count() const { return RoundMoments::size(basis.steps * 16, pass.tile_channels()); }
  HYENAREC_DEVICE int shared_bytes(int pools) const {
    return Shape::kZeros + Shape::kColumns + 4 * (near_words() + edge_words() + nu_count()) + pools * pass.pool_bytes();
  }

  struct Shared {
    char* zeros;
    Columns* columns;
    uint32_t *near, *edge;
    RoundMoments nu;
    char* pools;
  };
  HYENAREC_DEVICE Shared layout(void* memory) const {
    Shared shared;
    shared.zeros = static_cast<char*>(memory);
    shared.columns = reinterpret_cast<Columns*>(shared.zeros + Shape::kZeros);
    shared.near = reinterpret_cast<uint32_t*>(shared.columns + 1);
    shared.edge = shared.near + near_words();
    shared.nu = {reinterpret_cast<float*>(shared.edge + edge_words()), basis.steps * 16, pass.tile_channels()};
    shared.pools = reinterpret_cast<char*>(shared.nu.values + nu_count());
    return shared;
  }

  // Writes zeros and tables to shared memory, once per block.
  HYENAREC_DEVICE void begin(int thread, const Shared& shared, const Tile& tile) const {
    if (thread < Shape::kZeros / 4) reinterpret_cast<uint32_t*>(shared.zeros)[thread] = 0;
    int real = tile.channels - tile.first < pass.tile_channels() ? tile.channels - tile.first : pass.tile_channels();
    auto copy = [&](uint32_t* to, const uint32_t* from, int words) {
      copy_words(to, from + int64_t(tile.first) * words, int64_t(real) * words, thread, Shape::kThreads);
    };
    copy(shared.near, taps.near, Products::table_words(kTile));
    if (kEdges) copy(shared.edge, taps.edge, Products::table_words(TapTables::kEdgeTaps));
  }

  // Overwrites the pool's tiles with T u, plus the products of the filter's end with the tiles that `load(distance)`
  // puts into the pool, plus what comes from the other tiles.
  template <bool kTransposed, class Block, class Load>
  HYENAREC_DEVICE void convolve(Block& block, const Shared& shared, const Tile& tile, const Pool<T>& pool, int round,
                                const TilesBetween<T>& between, const MomentWords<T>& moments, const Load& load) const {
    if (between.above)
      block.phase([&](int thread) {
        between.come_down(thread, Shape::kThreads, pass, tile, round, kTransposed, shared.nu);
      });
    using Output = typename Products::Output;
    const Columns& columns = *shared.columns;
    auto meet = [&](const Warp& warp, int c) {
      if (between.moments.words)
        between.meet(warp, pass, columns, moments, tile.first + c, c, round, kTransposed, shared.nu);
    };
    auto products = [&](const Warp& warp, Output& y, int c, const uint32_t* table, int count, const int* other,
                        int ahead) HYENAREC_INLINE {
      const int* reach = kTransposed ? columns.after : columns.before;
      // with `anew`, here and below, ptxas spills nothing for any architecture
      Products::template convolve<kTransposed>(kTransposed ? warp : warp.anew(), y, {pool.slot(c, 0), reach, other, shared.zeros}, kReach, ahead,
                                               table + c * Products::table_words(count), count);
    };
    auto finish = [&](const Warp& warp, Output& y, int c) {
      if (between.moments.words)
        TileProducts<T>::far(warp.anew(), y, c, basis, rates ? rates + tile.first : nullptr, kTransposed, shared.nu);
      Products::template put<false>(warp, y, pool.slot(c, 0));
    };
    if constexpr (!kEdges) {
      block.warps([&](const Warp& warp) {
        for (int c = warp.number; pass.has(tile, c); c += Shape::kWarps) {
          meet(warp, c);
          Output y{};
          products(warp, y, c, shared.near, kTile, nullptr, 0);
          finish(warp, y, c);
        }
      });
      return;
    }
    Kept<Output[Shape::kEach], Shape::kWarps> kept{};
    auto each_channel = [&](const Warp& warp, const auto& f) HYENAREC_INLINE {
      each<Shape::kEach>([&](auto i) HYENAREC_INLINE {
        int c = warp.number + i.value * Shape::kWarps;
        if (pass.has(tile, c)) f(kept[warp.number][i.value], c);
      });
    };
    block.warps([&](const Warp& warp) HYENAREC_INLINE {
      each_channel(warp, [&](Output& y, int c) HYENAREC_INLINE {
        meet(warp, c);
        products(warp, y, c, shared.near, kTile, nullptr, 0);
      });
    });
    for (int edge = 0; edge < taps.edges; ++edge) {
      load(taps.distance + edge);
      block.warps([&](const Warp& warp) HYENAREC_INLINE {
        each_channel(warp, [&](Output& y, int c) HYENAREC_INLINE {
          products(warp, y, c, shared.edge, TapTables::kEdgeTaps, kTransposed ? columns.before : columns.after,
                   TapTables::ahead(edge));
        });
      });
    }
    block.warps([&](const Warp& warp) HYENAREC_INLINE {
      each_channel(warp, [&](Output& y, int c) HYENAREC_INLINE { finish(warp, y, c); });
    });
  }
};

template <class T, bool kEdges>
struct ConvolveTiles {
  using Shape = TileBlock<T>;
  static constexpr int kThreads = Shape::kThreads, kBlocks = kEdges || kScarceShared ? 1 : 2;
  TileConvolution<T, kEdges> with;
  Product source;
  Product output[2];  // the second is null
  TilesBetween<T> between;
  int in_order, before;  // rounds whose moments a share makes, and rounds before them; 0: the first pass makes moments

  HYENAREC_DEVICE int64_t grid() const { return with.pass.grid(); }
  HYENAREC_DEVICE int shared_bytes() const { return with.shared_bytes(1); }

  template <class Block>
  HYENAREC_DEVICE void operator()(Block& block, int index, void* memory) const {
    const auto shared = with.layout(memory);
    const TilePass<T>& pass = with.pass;
    const Tile tile = pass.tile(index);
    const Pool<T> pool = pass.pool(shared.pools);
    block.phase([&](int thread) { with.begin(thread, shared, tile); });
    const int share = index / pass.groups();
    const int begin = share * in_order;
    const int end = in_order && begin + in_order < pass.rounds() ? begin + in_order : pass.rounds();
    int round = share;
    MomentWords<T> moments = between.moments;
    if (in_order) {
      round = begin < end ? first_met(begin) : begin;
      moments.slots = (before + in_order) * kRoundTiles, moments.first = round * kRoundTiles;
      moments.words += int64_t(share) * tile.channels * moments.slots * MomentWords<T>::count(with.basis.steps);
    }
    for (; round < end; round += in_order ? 1 : pass.shares) {
      auto load = [&](int distance) {
        block.phase([&](int thread) {
          if (thread < kRoundColumns) pass.place(*shared.columns, thread, round, distance);
        });
        block.phase([&](int thread) { fill(thread, kThreads, tile, *shared.columns, pool, source); });
      };
      load(0);
      if (in_order) {
        block.warps([&](const Warp& warp) {
          TileProducts<T>::template moments<1>(sizeof(T) == 4 ? warp : warp.anew(), pool, shared.zeros, tile, with.basis,
                                               with.rates ? with.rates + tile.first : nullptr, false, shared.nu);
        });
        block.phase([&](int thread) {
          moments.put(thread, kThreads, tile, round, pass.tiles.count, with.basis.steps, shared.nu);
        });
        if (round < begin) continue;
      }
      with.template convolve<false>(block, shared, tile, pool, round, between, moments, load);
      if (kEdges)
        block.phase([&](int thread) {
          if (thread < kRoundColumns) pass.place(*shared.columns, thread, round, 0);
        });
      block.phase([&](int thread) { drain(thread, kThreads, tile, *shared.columns, pool, output); });
    }
  }

 private:
  // The round of the earliest tile that tiles of round `begin` or later meet; it is in the sequence of the first of
  // these.
  HYENAREC_DEVICE int first_met(int begin) const {
    const Slot slot = with.pass.tiles.slots[begin * kRoundTiles];
    const int most = between.shape.distance(between.shape.distances() - 1);
    const int back = !Nodes::exists(slot, kTile) ? 0 : slot.index < most ? slot.index : most;
    return (begin * kRoundTiles - back) / kRoundTiles;
  }
};

}  // namespace hyenarec::cuda
