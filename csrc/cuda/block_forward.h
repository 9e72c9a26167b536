// The second pass: the part inside each tile, what comes from other tiles, the filter's end, and the gates.
#pragma once
#include "block_output.h"

namespace hyenarec::cuda {

template <class T>
struct ConvolveTiles {
  using S = WideTile<T>;
  static constexpr int kThreads = S::kThreads, kBlocks = 2;
  // A channel: u, then y.
  static constexpr int kStride = S::kInput + S::kResult + S::kSkewed, kSharedBytes = S::kChannels * kStride;

  Nodes tiles;
  Channels channels;
  int groups, rows;  // groups of kChannels; rows of a batch row
  Product source, output;
  AllTaps taps;
  FarField far;

  int64_t grid() const { return int64_t(tiles.count) * groups; }

  template <class Block>
  HYENAREC_DEVICE void operator()(Block& block, int64_t index, void* memory) const {
    auto* shared = static_cast<char*>(memory);
    Slot slot = tiles.slots[index / groups];
    int channel = int(index % groups) * S::kChannels;
    bool exists = Nodes::exists(slot, kTile);
    if (!exists && !tiles.per_sequence) return;
    for (int round = 0; exists && round <= taps.edges; ++round) {
      EdgePair pair = taps.pair(round);
      if (slot.index < pair.distance) continue;
      block.phase([&](int thread) {
        Piece piece(thread);
        float u[4][S::kVector];
        read_piece<T>(u, source, TileRows(slot, -pair.distance), piece, tiles.per_sequence ? slot.sequence : 0,
                      channel + piece.column * S::kVector, channels.count);
        store_piece<S>(u, shared, kStride, piece);
        clear_zeros<S>(shared, kStride, thread);
      });
      block.warps([&](const Warp& warp) {
        HYENAREC_ONE_BY_ONE
        for (int i = 0; i < S::kEach; ++i) {
          int c = warp.number * S::kEach + i;
          char* at = S::at(shared, kStride, c);
          if (channel + c >= channels.count)
            clear_channel(warp, at + S::kInput);
          else if (round == 0)
            convolve_channel<false, true, S::kPlanes>(warp, taps.near, channel + c, pair.blocks, at, at + S::kInput);
          else
            convolve_channel<false, false, S::kPlanes>(warp, taps.edge, channel + c, pair.blocks, at, at + S::kInput);
        }
      });
    }
    block.warps([&](const Warp& warp) {
      OutputTile<T, S> tile{tiles, channels, int(index / groups), slot, channel, rows};
      tile.each_row(warp, shared + S::kInput, kStride, far,
                    [&](const Place& place, const float(&y)[S::kVector], bool real) {
                      tile.put(output, place, y, real);
                    });
    });
  }
};

}  // namespace hyenarec::cuda
