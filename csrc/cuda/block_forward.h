// The second pass: the part inside each tile, what comes from other tiles, the filter's end, and the gates.
#pragma once
#include "block_output.h"

namespace hyenarec::cuda {

template <class T>
struct ConvolveTiles {
  using S = Tile<T>;
  static constexpr int kThreads = S::kThreads, kBlocks = S::kPlanes == 1 ? 3 : 2;
  static constexpr int kStride = (S::kInput > S::kResult ? S::kInput : S::kResult) + S::kSkewed;
  static constexpr int kSharedBytes = S::kChannels * kStride + 16;

  Nodes tiles;
  Channels channels;
  int groups, rows;  // groups of kChannels; rows of a batch row
  Product source, output;
  Taps near, edge;
  int edges;  // pairs
  EdgePair pairs[kMostEdges];
  FarField far;

  int64_t grid() const { return int64_t(tiles.count) * groups; }

  template <class Block>
  HYENAREC_DEVICE void operator()(Block& block, int64_t index, void* memory) const {
    auto* shared = static_cast<char*>(memory);
    char* zero = shared + S::kChannels * kStride;
    Slot slot = tiles.slots[index / groups];
    int channel = int(index % groups) * S::kChannels;
    bool exists = Nodes::exists(slot, kTile);
    if (!exists && !tiles.per_sequence) return;
    struct Sums {
      PerLane<Accumulator> of[S::kEach][2];
    };
    Kept<Sums, S::kWarps> sums{};
    for (int round = 0; exists && round <= edges; ++round) {
      EdgePair pair = round ? pairs[round - 1] : EdgePair{0, 0, 0, 15};
      if (slot.index < pair.distance) continue;
      block.phase([&](int thread) {
        Piece piece(thread);
        float u[4][S::kVector];
        read_piece<T>(u, source, TileRows(slot, -pair.distance), piece, tiles.per_sequence ? slot.sequence : 0,
                      channel + piece.column * S::kVector, channels.count);
        store_piece<T>(u, shared, kStride, piece, 0);
        if (thread == 0) *reinterpret_cast<Aligned<4>*>(zero) = {};
      });
      block.warps([&](const Warp& warp) {
        each<S::kEach>([&](auto i) {
          int c = warp.number * S::kEach + i.value;
          if (channel + c >= channels.count) return;
          convolve_blocks<false, S::kPlanes>(warp, sums[warp.number].of[i.value], round ? edge : near,
                                             channel + c, pair.base, pair.first, pair.last,
                                             S::at(shared, kStride, c), zero);
        });
      });
    }
    block.warps([&](const Warp& warp) {
      each<S::kEach>([&](auto i) {
        char* result = S::at(shared, kStride, warp.number * S::kEach + i.value);
        store_result<T>(warp, sums[warp.number].of[i.value], result);
      });
    });
    block.warps([&](const Warp& warp) {
      OutputTile<T> tile{tiles, channels, int(index / groups), slot, channel, rows};
      tile.each_row(warp, shared, kStride, far, [&](const Place& place, const float(&y)[S::kVector], bool real) {
        tile.put(output, place, y, real);
      });
    });
  }
};

}  // namespace hyenarec::cuda
