// Tiles of the block form as columns of Toeplitz products (columns.h, toeplitz.h): a tile of 256 rows is four columns,
// and the tiles of four slots (block_rows.h) are a round. A column meets columns of its own tile only or, at the
// filter's end, of one earlier tile.
#pragma once
#include "block_rows.h"
#include "toeplitz.h"

namespace hyenarec::cuda {

constexpr int kTileColumns = kTile / kColumnRows, kRoundTiles = kRoundColumns / kTileColumns;
constexpr int kReach = kTileColumns - 1;  // columns of a tile before its last one
constexpr int kMostRank = 32;

// Channels [first, first + count) of a call, which has `total`.
struct Channels {
  int first, count, total, groups;
  HYENAREC_DEVICE int group(int c) const { return (first + c) / (total / groups); }
};

template <class T>
struct TileBlock {
  static constexpr int kThreads = 256, kWarps = kThreads / 32;
  static constexpr int kVectors = 2;  // of 16 bytes in a tile's row, at most: a sector of memory
  static constexpr int kEach = kVectors * Pool<T>::kVector / kWarps;  // channels of a warp: its number, that + kWarps
  static constexpr int kZeros = Toeplitz<T>::kZeros, kColumns = int(sizeof(Columns));
};

// What the thread blocks of a pass over tiles share. Each block has a tile of channels and every `shares`-th round.
template <class T>
struct TilePass {
  using Shape = TileBlock<T>;
  Nodes tiles;
  Channels channels;
  int rows;             // of a batch row
  int vectors, shares;  // vectors of 16 bytes in a tile of channels; shares of the rounds
  bool wide;            // the tensors' rows are aligned to 16 bytes

  HYENAREC_DEVICE int tile_channels() const { return vectors * Pool<T>::kVector; }
  HYENAREC_DEVICE int groups() const { return (channels.count - 1) / tile_channels() + 1; }
  HYENAREC_DEVICE int rounds() const { return int(ceil_div(tiles.count, kRoundTiles)); }
  HYENAREC_DEVICE int64_t grid() const { return int64_t(groups()) * shares; }
  HYENAREC_DEVICE int pool_bytes() const { return tile_channels() * Pool<T>::channel_bytes(kRoundColumns); }
  HYENAREC_DEVICE Pool<T> pool(char* data) const { return {data, kRoundColumns, 0}; }
  HYENAREC_DEVICE Tile tile(int index) const {
    return {index % groups() * tile_channels(), channels.count, vectors, wide};
  }

  // Places the round's columns `distance` tiles before their slots.
  HYENAREC_DEVICE void place(Columns& columns, int column, int round, int distance) const {
    int at = round * kRoundTiles + column / kTileColumns, place = column % kTileColumns;
    Slot slot = at < tiles.count ? tiles.slots[at] : Slot{0, 0, 0, 0};
    int number = (slot.index - distance) * kTileColumns + place;
    int written = at < tiles.count && tiles.per_sequence ? rows : slot.length;
    columns.span[column] = {tiles.per_sequence ? slot.sequence : 0, slot.start, slot.length, written, number,
                            number * kColumnRows};
    columns.before[column] = place, columns.after[column] = kReach - place;
    if (column == 0) find_most(columns, round);
  }

  // The largest number of tiles of the same sequence before, and after, one of the round's tiles.
  HYENAREC_DEVICE void find_most(Columns& columns, int round) const {
    columns.most_before = columns.most_after = 0;
    for (int at = round * kRoundTiles; at < (round + 1) * kRoundTiles && at < tiles.count; ++at) {
      Slot slot = tiles.slots[at];
      int behind = int(ceil_div(slot.length, kTile)) - 1 - slot.index;
      if (behind < 0) continue;
      if (slot.index > columns.most_before) columns.most_before = slot.index;
      if (behind > columns.most_after) columns.most_after = behind;
    }
  }

  HYENAREC_DEVICE bool has(const Tile& tile, int c) const {  // whether the tile has channel c
    return c < tile_channels() && tile.first + c < tile.channels;
  }

  // Zeros the sums (shares, channels, taps) of a share without a round.
  template <class Block>
  HYENAREC_DEVICE void clear(Block& block, const Tile& tile, float* sums, int share, int taps) const {
    block.phase([&](int thread) {
      for (int i = thread; i < tile_channels() * taps; i += Shape::kThreads)
        if (tile.first + i / taps < tile.channels) sums[(int64_t(share) * tile.channels + tile.first) * taps + i] = 0.f;
    });
  }
};

// A value that stays in a warp's registers from one phase to the next.
template <class Value, int kWarps>
struct Kept {
#ifdef __CUDA_ARCH__
  Value own;
  __device__ __forceinline__ Value& operator[](int) { return own; }
#else
  Value all[kWarps];
  HYENAREC_DEVICE Value& operator[](int warp) { return all[warp]; }
#endif
};

// The taps of a pass as tables of words (`Toeplitz::table_word`), one per channel. `near`: the taps inside a tile.
// `edge`: the taps from lag 256 (distance - 1) on, at the filter's end, which cuts pairs of tiles at `edges` distances
// from `distance` on.
struct TapTables {
  static constexpr int kEdgeTaps = 2 * kTile;
  const uint32_t *near, *edge;  // (channels, words)
  int edges, distance;

  // How many columns lie between a tile's own and the first lag of `edge`, for edge number `edge`.
  static HYENAREC_DEVICE int ahead(int edge) { return (edge + 1) * kTileColumns; }
};

// Copies the words of all channels of a tile from memory to shared memory, 16 bytes at a time.
HYENAREC_DEVICE void copy_words(uint32_t* to, const uint32_t* from, int64_t count, int thread, int threads) {
  for (int64_t i = thread; i < count / 4; i += threads)
    reinterpret_cast<Vector*>(to)[i] = reinterpret_cast<const Vector*>(from)[i];
}

}  // namespace hyenarec::cuda
