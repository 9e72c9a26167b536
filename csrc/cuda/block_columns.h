// Tiles of the block form as columns of Toeplitz products (columns.h, toeplitz.h): a tile of 256 rows is four columns, a
// round the tiles of four slots. A column has partners in its own tile only; at the filter's end, in one tile before it.
#pragma once
#include "block_rows.h"
#include "toeplitz.h"

namespace hyenarec::cuda {

constexpr int kTileColumns = kTile / kColumnRows, kRoundTiles = kRoundColumns / kTileColumns;
constexpr int kReach = kTileColumns - 1;  // of a tile's last column
constexpr int kMostRank = 32;

// Channels [first, first + count) of a call, which has `total`.
struct Channels {
  int first, count, total, groups;
  HYENAREC_DEVICE int group(int c) const { return (first + c) / (total / groups); }
};

template <class T>
struct TileBlock {
  static constexpr int kThreads = 256, kWarps = kThreads / 32;
  static constexpr int kVectors = 2;  // of 16 bytes, at most: a sector of memory
  static constexpr int kEach = kVectors * Pool<T>::kVector / kWarps;  // channels of a warp: number, number + kWarps
  static constexpr int kZeros = Toeplitz<T>::kZeros, kColumns = int(sizeof(Columns));
};

// What the blocks of a pass over tiles share: block i has a tile of channels and every `shares`-th round.
template <class T>
struct TilePass {
  using Shape = TileBlock<T>;
  Nodes tiles;
  Channels channels;
  int rows;             // of a batch row
  int vectors, shares;  // of a tile of channels; of the rounds
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

  // The round's columns, `distance` tiles before their slots.
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

  // How many tiles of its sequence any of the round's tiles has before it, and behind it.
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

  HYENAREC_DEVICE bool has(const Tile& tile, int c) const {  // of the tile's channels
    return c < tile_channels() && tile.first + c < tile.channels;
  }

  // Sums (shares, channels, taps) of a share without a round are zero.
  template <class Block>
  HYENAREC_DEVICE void clear(Block& block, const Tile& tile, float* sums, int share, int taps) const {
    block.phase([&](int thread) {
      for (int i = thread; i < tile_channels() * taps; i += Shape::kThreads)
        if (tile.first + i / taps < tile.channels) sums[(int64_t(share) * tile.channels + tile.first) * taps + i] = 0.f;
    });
  }
};

// What lives in a warp's registers from one phase to the next.
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

// The taps of a pass as tables of words (`Toeplitz::table_word`), a channel each: those inside a tile; and those of the
// filter's end, which cuts the `edges` pairs of tiles from `distance` on, from lag 256 (distance - 1) on.
struct TapTables {
  static constexpr int kEdgeTaps = 2 * kTile;
  const uint32_t *near, *edge;  // (channels, words)
  int edges, distance;

  // Columns between a tile's own and the table's first lag, for edge number `edge`.
  static HYENAREC_DEVICE int ahead(int edge) { return (edge + 1) * kTileColumns; }
};

// Words of all channels of a tile, from memory to shared memory, 16 bytes at a time.
HYENAREC_DEVICE void copy_words(uint32_t* to, const uint32_t* from, int64_t count, int thread, int threads) {
  for (int64_t i = thread; i < count / 4; i += threads)
    reinterpret_cast<Vector*>(to)[i] = reinterpret_cast<const Vector*>(from)[i];
}

}  // namespace hyenarec::cuda
