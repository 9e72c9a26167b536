// The second pass backward: all row gradients of a tile from one reading, and the gradient of the taps inside tiles.
//
// y is computed again for the post-gate's gradient, du = H^T dy for those of x and pre-gate; the taps' gradient is the
// correlation of dy with u. A block takes one tile after the other and keeps that in registers; where the filter's end
// lies inside the sequences its registers hold sums of rows instead, and the correlation is a launch of its own.
#pragma once
#include "block_output.h"

namespace hyenarec::cuda {

// The sums of a warp's correlations: c[m, k] is lag 16 k + m.
template <class T>
struct LagSums {
  PerLane<Accumulator> of[Tile<T>::kEach][2];

  HYENAREC_DEVICE void store(const Warp& warp, int channel, int count, float* partial) const {
    each<Tile<T>::kEach>([&](auto i) {
      int c = channel + warp.number * Tile<T>::kEach + i.value;
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

// Zeros before a piece's channels' floats, and behind them where `behind`.
template <class T>
HYENAREC_DEVICE void clear_margins(char* base, int stride, const Piece& piece, int plain, bool behind) {
  if (piece.first != 0) return;
  each<Tile<T>::kVector>([&](auto v) {
    char* floats = Tile<T>::at(base, stride, piece.column * Tile<T>::kVector + v.value) + plain;
    each<4>([&](auto i) {
      *reinterpret_cast<Aligned<4>*>(floats + i.value * 16) = {};
      if (behind) *reinterpret_cast<Aligned<4>*>(floats + Tile<T>::kPlain + i.value * 16) = {};
    });
  });
}

template <class T, bool kEdges>
struct ConvolveTilesBackward {
  using S = Tile<T>;
  static constexpr int kThreads = S::kThreads, kBlocks = 2;
  // A channel: u and its floats, or y; then dy, or du.
  static constexpr int kSecond = S::kInput + S::kPlain;
  static constexpr int kStride = kSecond + (S::kInput > S::kResult ? S::kInput : S::kResult) + S::kSkewed;
  static constexpr int kSharedBytes = S::kChannels * kStride + 16;

  Nodes tiles;
  Channels channels;
  int groups, shares, rows;
  Product u, dy, to_post, to_x, to_pre;  // the last three: an output and its factor, or null
  Taps near, edge;
  int edges;
  EdgePair pairs[kMostEdges];
  FarField far, far_transposed;
  float* lags;  // (shares, channels, 256) or null

  int64_t grid() const { return int64_t(shares) * groups; }

  template <class Block>
  HYENAREC_DEVICE void operator()(Block& block, int64_t index, void* memory) const {
    auto* shared = static_cast<char*>(memory);
    int channel = int(index % groups) * S::kChannels, share = int(index / groups);
    Kept<LagSums<T>, S::kWarps> kept{};
    for (int number = share; number < tiles.count; number += shares) {
      Slot slot = tiles.slots[number];
      bool exists = Nodes::exists(slot, kTile);
      if (!exists && !tiles.per_sequence) continue;
      if constexpr (kEdges)
        with_edges(block, shared, slot, exists, channel);
      else if (exists)
        alone(block, shared, slot, channel, kept);
      block.warps([&](const Warp& warp) {
        OutputTile<T> tile{tiles, channels, number, slot, channel, rows};
        if (to_post.value.data)
          tile.each_row(warp, shared, kStride, far, [&](const Place& place, const float(&y)[S::kVector], bool real) {
            tile.put(to_post, place, y, real);
          });
        if (to_x.value.data || to_pre.value.data)
          tile.each_row(warp, shared + kSecond, kStride, far_transposed,
                        [&](const Place& place, const float(&y)[S::kVector], bool real) {
                          tile.put(to_x, place, y, real);
                          tile.put(to_pre, place, y, real);
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
      store_piece<T>(values, shared, kStride, piece, S::kInput);
      clear_margins<T>(shared, kStride, piece, S::kInput, false);
      read_piece<T>(values, dy, TileRows(slot, distance), piece, batch, at, channels.count);
      store_piece<T>(values, shared + kSecond, kStride, piece, 0);
      if (thread == 0) *reinterpret_cast<Aligned<4>*>(shared + S::kChannels * kStride) = {};
    });
  }

  template <class Block>
  HYENAREC_DEVICE void alone(Block& block, char* shared, const Slot& slot, int channel,
                             Kept<LagSums<T>, S::kWarps>& kept) const {
    char* zero = shared + S::kChannels * kStride;
    load(block, shared, slot, channel, 0);
    block.warps([&](const Warp& warp) {
      each<S::kEach>([&](auto i) {
        int c = warp.number * S::kEach + i.value, number = channel + c;
        if (channel + c >= channels.count) return;
        char* at = S::at(shared, kStride, c);
        PerLane<Accumulator> y[2]{}, du[2]{};
        if (to_post.value.data)
          convolve_blocks<false, S::kPlanes>(warp, y, near, number, 0, 0, 15, at, zero);
        if (to_x.value.data || to_pre.value.data)
          convolve_blocks<true, S::kPlanes>(warp, du, near, number, 0, 0, 15, at + kSecond, zero);
        if (lags)
          correlate_blocks<S::kPlanes>(warp, kept[warp.number].of[i.value], at + S::kInput, at + kSecond, zero, 0);
        warp.sync();
        store_result<T>(warp, y, at);
        store_result<T>(warp, du, at + kSecond);
      });
    });
  }

  template <class Block>
  HYENAREC_DEVICE void with_edges(Block& block, char* shared, const Slot& slot, bool exists, int channel) const {
    char* zero = shared + S::kChannels * kStride;
    struct Sums {
      PerLane<Accumulator> y[S::kEach][2], du[S::kEach][2];
    };
    Kept<Sums, S::kWarps> sums{};
    for (int round = 0; exists && round <= edges; ++round) {
      EdgePair pair = round ? pairs[round - 1] : EdgePair{0, 0, 0, 15};
      bool before = slot.index >= pair.distance;
      bool behind = (int64_t(slot.index) + pair.distance) * kTile < slot.length;
      if (!before && !behind) continue;
      load(block, shared, slot, channel, pair.distance);
      block.warps([&](const Warp& warp) {
        each<S::kEach>([&](auto i) {
          int c = warp.number * S::kEach + i.value, number = channel + c;
          if (channel + c >= channels.count) return;
          char* at = S::at(shared, kStride, c);
          const Taps& taps = round ? edge : near;
          if (before)
            convolve_blocks<false, S::kPlanes>(warp, sums[warp.number].y[i.value], taps, number, pair.base, pair.first,
                                               pair.last, at, zero);
          if (behind)
            convolve_blocks<true, S::kPlanes>(warp, sums[warp.number].du[i.value], taps, number, pair.base, pair.first,
                                              pair.last, at + kSecond, zero);
        });
      });
    }
    block.warps([&](const Warp& warp) {
      each<S::kEach>([&](auto i) {
        char* at = S::at(shared, kStride, warp.number * S::kEach + i.value);
        store_result<T>(warp, sums[warp.number].y[i.value], at);
        store_result<T>(warp, sums[warp.number].du[i.value], at + kSecond);
      });
    });
  }
};

// The gradient of 256 taps, from pairs of tiles `distance` apart: of rows 16 (k + shift) + m apart in their tiles.
template <class T>
struct CorrelateTiles {
  using S = Tile<T>;
  static constexpr int kThreads = S::kThreads, kBlocks = 2;
  static constexpr int kSecond = S::kInput + S::kPlain + 16 * int(sizeof(float));
  static constexpr int kStride = kSecond + S::kInput + S::kSkewed, kSharedBytes = S::kChannels * kStride + 16;

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
    char* zero = shared + S::kChannels * kStride;
    int channel = int(index % groups) * S::kChannels, share = int(index / groups);
    Kept<LagSums<T>, S::kWarps> kept{};
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
          store_piece<T>(values, shared, kStride, piece, S::kInput);
          clear_margins<T>(shared, kStride, piece, S::kInput, true);
          read_piece<T>(values, dy, TileRows(slot, 0), piece, batch, at, channels.count);
          store_piece<T>(values, shared + kSecond, kStride, piece, 0);
          if (thread == 0) *reinterpret_cast<Aligned<4>*>(zero) = {};
        });
        block.warps([&](const Warp& warp) {
          each<S::kEach>([&](auto i) {
            int c = warp.number * S::kEach + i.value;
            if (channel + c >= channels.count) return;
            char* at = S::at(shared, kStride, c);
            correlate_blocks<S::kPlanes>(warp, kept[warp.number].of[i.value], at + S::kInput, at + kSecond, zero,
                                         pair.shift);
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
