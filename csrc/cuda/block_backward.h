// The second pass backward: all row gradients of a tile from one reading, and the gradient of the taps inside tiles.
//
// y is computed again for the post-gate's gradient, du = H^T dy for those of x and pre-gate; the taps' gradient is the
// correlation of dy with u, which a block keeps in registers while it takes one tile after the other. What of that
// belongs to the filter's end is a launch of its own, for few tiles have it.
#pragma once
#include "block_output.h"

namespace hyenarec::cuda {

// The sums of a warp's correlations: c[m, k] is lag 16 k + m.
template <class S>
struct LagSums {
  PerLane<Accumulator> of[S::kEach][2];

  HYENAREC_DEVICE void store(const Warp& warp, int channel, int count, float* partial) const {
    each<S::kEach>([&](auto i) {
      int c = channel + warp.number * S::kEach + i.value;
      if (c >= count) return;
      warp.lanes([&](int lane) {
        each<2>([&](auto half) {
          each<4>([&](auto v) {
            int lag = 16 * (half.value * 8 + lane % 4 * 2 + v.value % 2) + lane / 4 + v.value / 2 * 8;
            partial[int64_t(c) * kTile + lag] = of[i.value][half.value][lane].value[v.value];
          });
        });
      });
    });
  }
};

template <class T>
struct ConvolveTilesBackward {
  using S = NarrowTile<T>;
  static constexpr int kThreads = S::kThreads, kBlocks = 2;
  // A channel: u; its floats, later y; dy; du.
  static constexpr int kY = S::kInput, kDy = kY + S::kResult, kDu = kDy + S::kInput;
  static constexpr int kStride = kDu + S::kResult + S::kSkewed, kSharedBytes = S::kChannels * kStride;
  static_assert(S::kPlain <= S::kResult && kSharedBytes <= 99 * 1024);

  Nodes tiles;
  Channels channels;
  int groups, shares, rows;
  Product u, dy, to_post, to_x, to_pre;  // the last three: an output and its factor, or null
  AllTaps taps;
  FarField far, far_transposed;
  float* lags;  // (shares, channels, 256) or null

  int64_t grid() const { return int64_t(shares) * groups; }

  template <class Block>
  HYENAREC_DEVICE void operator()(Block& block, int64_t index, void* memory) const {
    auto* shared = static_cast<char*>(memory);
    int channel = int(index % groups) * S::kChannels, share = int(index / groups);
    bool need_post = to_post.value.data, need_input = to_x.value.data || to_pre.value.data;
    Kept<LagSums<S>, S::kWarps> kept{};
    for (int number = share; number < tiles.count; number += shares) {
      Slot slot = tiles.slots[number];
      bool exists = Nodes::exists(slot, kTile);
      if (!exists && !tiles.per_sequence) continue;
      for (int round = 0; exists && round <= taps.edges; ++round) {
        EdgePair pair = taps.pair(round);
        bool before = slot.index >= pair.distance;
        bool behind = (int64_t(slot.index) + pair.distance) * kTile < slot.length;
        if (!before && !behind) continue;
        load(block, shared, slot, channel, pair.distance);
        block.warps([&](const Warp& warp) {
          if (round == 0 && lags) {
            each<S::kEach>([&](auto i) {
              char* at = S::at(shared, kStride, warp.number * S::kEach + i.value);
              correlate_blocks<true, S::kPlanes>(warp, kept[warp.number].of[i.value], at + kY, at + kDy, 0);
            });
            warp.sync();
          }
          HYENAREC_ONE_BY_ONE
          for (int i = 0; i < S::kEach; ++i) {
            int c = warp.number * S::kEach + i;
            char* at = S::at(shared, kStride, c);
            if (channel + c >= channels.count) {
              clear_channel(warp, at + kY);
              clear_channel(warp, at + kDu);
            } else if (round == 0) {
              if (need_post)
                convolve_channel<false, true, S::kPlanes>(warp, taps.near, channel + c, pair.blocks, at, at + kY);
              if (need_input)
                convolve_channel<true, true, S::kPlanes>(warp, taps.near, channel + c, pair.blocks, at + kDy, at + kDu);
            } else {
              if (before && need_post)
                convolve_channel<false, false, S::kPlanes>(warp, taps.edge, channel + c, pair.blocks, at, at + kY);
              if (behind && need_input)
                convolve_channel<true, false, S::kPlanes>(warp, taps.edge, channel + c, pair.blocks, at + kDy, at + kDu);
            }
          }
        });
      }
      block.warps([&](const Warp& warp) {
        OutputTile<T, S> tile{tiles, channels, number, slot, channel, rows};
        if (need_post)
          tile.each_row(warp, shared + kY, kStride, far,
                        [&](const Place& place, const float(&y)[S::kVector], bool real) {
                          tile.put(to_post, place, y, real);
                        });
        if (need_input)
          tile.each_row(warp, shared + kDu, kStride, far_transposed,
                        [&](const Place& place, const float(&du)[S::kVector], bool real) {
                          tile.put(to_x, place, du, real);
                          tile.put(to_pre, place, du, real);
                        });
      });
    }
    if (lags)
      block.warps([&](const Warp& warp) {
        kept[warp.number].store(warp, channel, channels.count, lags + int64_t(share) * channels.count * kTile);
      });
  }

 private:
  // Puts u of the tile `distance` before the slot's, and dy of that behind it, into shared memory.
  template <class Block>
  HYENAREC_DEVICE void load(Block& block, char* shared, const Slot& slot, int channel, int distance) const {
    block.phase([&](int thread) {
      Piece piece(thread);
      int64_t batch = tiles.per_sequence ? slot.sequence : 0;
      int at = channel + piece.column * S::kVector;
      float values[4][S::kVector];
      read_piece<T>(values, u, TileRows(slot, -distance), piece, batch, at, channels.count);
      store_piece<S>(values, shared, kStride, piece);
      if (distance == 0 && lags) store_plain<S>(values, shared + kY, kStride, piece, false);
      read_piece<T>(values, dy, TileRows(slot, distance), piece, batch, at, channels.count);
      store_piece<S>(values, shared + kDy, kStride, piece);
      clear_zeros<S>(shared, kStride, thread);
      clear_zeros<S>(shared + kDy, kStride, thread);
    });
  }
};

// The gradient of 256 taps, from pairs of tiles `distance` apart: of rows 16 (k + shift) + m apart in their tiles.
template <class T>
struct CorrelateTiles {
  using S = NarrowTile<T>;
  static constexpr int kThreads = S::kThreads, kBlocks = 2;
  static constexpr int kDy = S::kPlain + 16 * int(sizeof(float));  // a channel: the floats of u; dy
  static constexpr int kStride = kDy + S::kInput + S::kSkewed, kSharedBytes = S::kChannels * kStride;

  struct Pair {
    int distance, shift;
  };

  Nodes tiles;
  Channels channels;
  int groups, shares;
  Product u, dy;
  int count;
  Pair pairs[kMostEdges];
  float* lags;  // (shares, channels, 256)

  int64_t grid() const { return int64_t(shares) * groups; }

  template <class Block>
  HYENAREC_DEVICE void operator()(Block& block, int64_t index, void* memory) const {
    auto* shared = static_cast<char*>(memory);
    int channel = int(index % groups) * S::kChannels, share = int(index / groups);
    Kept<LagSums<S>, S::kWarps> kept{};
    for (int number = share; number < tiles.count; number += shares) {
      Slot slot = tiles.slots[number];
      if (!Nodes::exists(slot, kTile)) continue;
      for (int which = 0; which < count; ++which) {
        Pair pair = pairs[which];
        if (slot.index < pair.distance) continue;
        block.phase([&](int thread) {
          Piece piece(thread);
          int64_t batch = tiles.per_sequence ? slot.sequence : 0;
          int at = channel + piece.column * S::kVector;
          float values[4][S::kVector];
          read_piece<T>(values, u, TileRows(slot, -pair.distance), piece, batch, at, channels.count);
          store_plain<S>(values, shared, kStride, piece, true);
          read_piece<T>(values, dy, TileRows(slot, 0), piece, batch, at, channels.count);
          store_piece<S>(values, shared + kDy, kStride, piece);
          clear_zeros<S>(shared + kDy, kStride, thread);
        });
        block.warps([&](const Warp& warp) {
          each<S::kEach>([&](auto i) {
            char* at = S::at(shared, kStride, warp.number * S::kEach + i.value);
            correlate_blocks<false, S::kPlanes>(warp, kept[warp.number].of[i.value], at, at + kDy, pair.shift);
          });
        });
      }
    }
    block.warps([&](const Warp& warp) {
      kept[warp.number].store(warp, channel, channels.count, lags + int64_t(share) * channels.count * kTile);
    });
  }
};

}  // namespace hyenarec::cuda
