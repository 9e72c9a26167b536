// A tile in shared memory: 256 rows of a few channels, each channel's rows adjacent, and products of Toeplitz matrices
// with it.
//
// A channel's rows lie as 16-bit words of rows t and t + 1, by *units* of 8 rows: first the units of even number, then
// those of odd number, so that one matrix instruction reads units 16 rows apart without a bank conflict. A unit of zeros
// is before, between and behind them, where products that reach out of the tile read. With block b for rows [16 b, 16 b +
// 16), the convolution inside a tile is
//
//     y_a = sum_d T_d u_{a - d},    T_d[i, j] = h[16 d + i - j]
//
// and all blocks a of a tile are the columns of one product: (16, 16) times (16, 16) for each d.
//
// A float that has more digits than bfloat16 is the sum of two or three of them, *planes*: of float16 values two hold
// all bits, of float32 values three. A product of two sums leaves out what is below their last bit.
#pragma once
#include "block_rows.h"

namespace hyenarec::cuda {

template <class T>
constexpr int kPlanesOf = sizeof(T) == 4 ? 3 : std::is_same_v<T, Bfloat16> ? 1 : 2;

// Tiles of values of type T, C channels wide: 32 bytes of a row or more.
template <class T, int C>
struct TileShape {
  static constexpr int kThreads = 256, kWarps = 8;
  static constexpr int kPlanes = kPlanesOf<T>, kChannels = C;
  static constexpr int kVector = C / 4;     // channels that a thread reads at once, 16 bytes or 8
  static constexpr int kEach = C / kWarps;  // channels of a warp
  static constexpr int kColumns = C / 8;    // tiles of 8 columns of a product over channels

  static constexpr int kHalf = 16 + 16 * 16, kPlane = 2 * kHalf + 16;  // bytes: to units of odd number; of all
  static constexpr int kSkew = 32, kSkewed = 3 * kSkew;           // bytes between vectors of channels, for the banks
  static constexpr int kInput = kPlanes * kPlane;
  static constexpr int kResult = 16 * 20 * int(sizeof(float));    // a channel's rows as floats, 4 empty after each 16
  static constexpr int kPlain = (16 + kTile) * int(sizeof(float));  // likewise, none empty, after 16 zeros

  // Where channel c begins, of channels `stride` bytes apart.
  static HYENAREC_DEVICE char* at(char* base, int stride, int c) { return base + c * stride + c / kVector * kSkew; }
};
constexpr int kTileHalf = TileShape<Float32, 16>::kHalf, kTilePlane = TileShape<Float32, 16>::kPlane;

// Bfloat16 rows are read 64 bytes at a time where a pass needs little shared memory.
template <class T>
using WideTile = TileShape<T, kPlanesOf<T> == 1 ? 32 : 16>;
template <class T>
using NarrowTile = TileShape<T, 16>;

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

// The tile before or behind a slot's by `distance`, its row 0 at position `first`; rows outside the sequence are zero.
struct TileRows {
  Slot slot;
  int64_t first;
  HYENAREC_DEVICE TileRows(const Slot& slot, int distance)
      : slot(slot), first((int64_t(slot.index) + distance) * kTile) {}
  HYENAREC_DEVICE bool holds(int row) const { return first >= 0 && first + row < slot.length; }
};

// A thread's piece of a tile: rows first to first + 3 of one vector of channels.
struct Piece {
  int column, first;
  HYENAREC_DEVICE explicit Piece(int thread) : column(thread % 4), first(thread / 4 * 4) {}
};

// u[r][v] = value * factor of a piece.
template <class T, int V>
HYENAREC_DEVICE void read_piece(float (&u)[4][V], const Product& from, const TileRows& rows, const Piece& piece,
                                int64_t batch, int channel, int channels) {
  each<4>([&](auto r) {
    each<V>([&](auto v) { u[r.value][v.value] = 0.f; });
    int row = piece.first + r.value, left = channels - channel;
    if (!rows.holds(row) || left <= 0) return;
    Place place{batch, rows.slot.start + rows.first + row, channel, left};
    read<T>(u[r.value], from.value, place);
    multiply<T>(u[r.value], from.factor, place);
  });
}

// w[p] = the words of plane p of two values.
template <int P>
HYENAREC_DEVICE void split(uint32_t (&w)[P], float low, float high) {
  each<P>([&](auto p) {
    w[p.value] = packed<Bfloat16>(low, high);
    if constexpr (p.value + 1 < P) {
      low -= unpacked<Bfloat16>(w[p.value], 0);
      high -= unpacked<Bfloat16>(w[p.value], 1);
    }
  });
}

// Puts a piece into a tile.
template <class S, int V>
HYENAREC_DEVICE void store_piece(const float (&u)[4][V], char* base, int stride, const Piece& piece) {
  int unit = piece.first / 8;
  int place = 16 + unit % 2 * S::kHalf + unit / 2 * 16 + piece.first % 8 * 2;
  each<V>([&](auto v) {
    char* channel = S::at(base, stride, piece.column * V + v.value);
    uint32_t low[S::kPlanes], high[S::kPlanes];
    split(low, u[0][v.value], u[1][v.value]);
    split(high, u[2][v.value], u[3][v.value]);
    each<S::kPlanes>([&](auto p) {
      *reinterpret_cast<Aligned<2>*>(channel + p.value * S::kPlane + place) = {{low[p.value], high[p.value]}};
    });
  });
}

// The units of zeros of all channels.
template <class S>
HYENAREC_DEVICE void clear_zeros(char* base, int stride, int thread) {
  constexpr int kUnits = 3, kAll = S::kChannels * S::kPlanes * kUnits;
  static_assert(kAll <= S::kThreads);
  if (thread >= kAll) return;
  char* channel = S::at(base, stride, thread / (S::kPlanes * kUnits));
  int at = thread / kUnits % S::kPlanes * S::kPlane + thread % kUnits * S::kHalf;
  *reinterpret_cast<Aligned<4>*>(channel + at) = {};
}

// Puts a piece's floats behind 16 zeros a channel, and 16 more where `behind`.
template <class S, int V>
HYENAREC_DEVICE void store_plain(const float (&u)[4][V], char* base, int stride, const Piece& piece, bool behind) {
  each<V>([&](auto v) {
    auto* to = reinterpret_cast<Aligned<4>*>(S::at(base, stride, piece.column * V + v.value));
    Aligned<4> rows;
    each<4>([&](auto r) { rows.word[r.value] = float_to_bits(u[r.value][v.value]); });
    to[4 + piece.first / 4] = rows;
    if (piece.first < 16) to[piece.first / 4] = {};
    if (piece.first < 16 && behind) to[4 + kTile / 4 + piece.first / 4] = {};
  });
}

// The left operand of a product: a matrix that is constant along its diagonals, of which three words of a lane differ.
template <int P>
struct Diagonals {
  PerLane<Words<4>> plane[P];
};

// Which of a product's columns, blocks 0 to 7 and 8 to 15, have a partner in the tile, and on which sides others have none.
struct Reach {
  bool low, high, before, behind;
  static HYENAREC_DEVICE Reach of(int delta) { return {delta >= -7, delta <= 7, true, true}; }
};

// c[0], c[1] (16 rows; blocks 0 to 7 and 8 to 15) += a times the tile's blocks `delta` behind; those outside it are zero.
template <int P>
HYENAREC_DEVICE void multiply_blocks(const Warp& warp, PerLane<Accumulator> (&c)[2], const Diagonals<P>& a,
                                     const char* channel, int delta, const Reach& reach) {
  each<P>([&](auto q) {
    auto words = load_matrices<false>(warp, [&](int lane) {
      int block = lane % 8 + lane / 16 * 8 + delta;
      if (reach.before && block < -1) block = -1;
      if (reach.behind && block > 16) block = 16;
      return channel + (q.value * kTilePlane + 16) + lane / 8 % 2 * kTileHalf + block * 16;
    });
    PerLane<Words<2>> b[2];
    warp.lanes([&](int lane) {
      b[0][lane] = {{words[lane].word[0], words[lane].word[1]}};
      b[1][lane] = {{words[lane].word[2], words[lane].word[3]}};
    });
    each<P - q.value>([&](auto p) {
      if (reach.low) TensorCore<Bfloat16>::multiply(c[0], a.plane[p.value], b[0]);
      if (reach.high) TensorCore<Bfloat16>::multiply(c[1], a.plane[p.value], b[1]);
    });
  });
}

// f(d, what is known of it) for the 16 products inside a tile, blocks d before or behind: as many are written out at a
// time as registers hold the operands of.
template <bool kBehind, int P, class F>
HYENAREC_DEVICE void each_inside(const F& f) {
  each<2>([&](auto half) {
    constexpr bool kBoth = half.value == 0;
    constexpr int kOut = P == 1 ? 4 : 1;
    HYENAREC_ONE_BY_ONE
    for (int first = half.value * 8; first < half.value * 8 + 8; first += kOut)
      each<kOut>([&](auto d) { f(first + d.value, Reach{kBoth || kBehind, kBoth || !kBehind, !kBehind, kBehind}); });
  });
}

// Taps as the words (h[o], h[o - 1]), at index o + before: channels, planes, words.
struct Taps {
  const uint32_t* words;
  int planes, size, before;
  HYENAREC_DEVICE const uint32_t* of(int channel) const { return words + int64_t(channel) * planes * size; }
};

// Which taps meet a tile: T_{base + d}, d from first to last.
struct TapBlocks {
  int base, first, last;
};

// c += sum over d of T_{base + d} u_{a - d}; transposed, of T_{base + d}^T u_{a + d}. kInside: the tile itself.
template <bool kTransposed, bool kInside, int P>
HYENAREC_DEVICE void convolve_blocks(const Warp& warp, PerLane<Accumulator> (&c)[2], const Taps& taps, int number,
                                     const TapBlocks& blocks, const char* channel) {
  const uint32_t* words = taps.of(number) + 16 * blocks.base + taps.before;
  auto word = [&](int lane, int d, int plane, int beside) {
    int diagonal = lane / 4 - lane % 4 * 2;
    const uint32_t* of_lane = words + (kTransposed ? 1 - diagonal : diagonal);
    uint32_t found = of_lane[plane * taps.size + 16 * d + beside];
    return kTransposed ? found << 16 | found >> 16 : found;
  };
  Diagonals<P> a;
  constexpr int kBelow = kTransposed ? 1 : 2, kAbove = 3 - kBelow;
  auto start = [&](int first) {
    warp.lanes([&](int lane) {
      each<P>([&](auto p) { a.plane[p.value][lane].word[kAbove] = word(lane, first - 1, p.value, 8); });
    });
  };
  auto step = [&](int d, const Reach& reach) {
    warp.lanes([&](int lane) {
      each<P>([&](auto p) {
        uint32_t(&w)[4] = a.plane[p.value][lane].word;
        w[kBelow] = w[kAbove];
        w[0] = w[3] = word(lane, d, p.value, 0);
        w[kAbove] = word(lane, d, p.value, 8);
      });
    });
    multiply_blocks(warp, c, a, channel, kTransposed ? d : -d, reach);
  };
  if constexpr (kInside) {
    start(0);
    each_inside<kTransposed, P>(step);
  } else {
    start(blocks.first);
    HYENAREC_ONE_BY_ONE
    for (int d = blocks.first; d <= blocks.last; ++d) step(d, Reach::of(kTransposed ? d : -d));
  }
}

// c[m, k] += sum over t of u[t - m] v[t + 16 (k + shift)]: products of rows 16 (k + shift) + m apart, u from its floats.
template <bool kInside, int P>
HYENAREC_DEVICE void correlate_blocks(const Warp& warp, PerLane<Accumulator> (&c)[2], const char* plain,
                                      const char* channel, int shift) {
  const float* u = reinterpret_cast<const float*>(plain) + 16;
  auto words = [&](int lane, int s, int beside, uint32_t(&w)[P]) {
    const float* of_lane = u + (lane % 4 * 2 - lane / 4);
    split(w, of_lane[16 * s + beside], of_lane[16 * s + beside + 1]);
  };
  Diagonals<P> a;
  warp.lanes([&](int lane) {
    uint32_t w[P];
    words(lane, -1, 8, w);
    each<P>([&](auto p) { a.plane[p.value][lane].word[2] = w[p.value]; });
  });
  auto step = [&](int s, int delta, const Reach& reach) {
    warp.lanes([&](int lane) {
      uint32_t here[P], above[P];
      words(lane, s, 0, here);
      words(lane, s, 8, above);
      each<P>([&](auto p) {
        uint32_t(&w)[4] = a.plane[p.value][lane].word;
        w[1] = w[2];
        w[0] = w[3] = here[p.value];
        w[2] = above[p.value];
      });
    });
    multiply_blocks(warp, c, a, channel, delta, reach);
  };
  if constexpr (kInside) {
    each_inside<true, P>([&](int s, const Reach& reach) { step(s, s, reach); });
  } else {
    HYENAREC_ONE_BY_ONE
    for (int s = 0; s < (shift ? 17 : 16); ++s) step(s, s + shift, Reach::of(s + shift));
  }
}

// A warp's sums of one channel, (16 rows of a block; 16 blocks), as `kResult` lays them out: f(float in memory, sum).
template <class F>
HYENAREC_DEVICE void each_sum(const Warp& warp, PerLane<Accumulator> (&c)[2], char* result, const F& f) {
  auto* at = reinterpret_cast<float*>(result);
  warp.lanes([&](int lane) {
    each<2>([&](auto half) {
      each<4>([&](auto v) {
        int row = lane / 4 + v.value / 2 * 8, block = half.value * 8 + lane % 4 * 2 + v.value % 2;
        f(at[block * 20 + row], c[half.value][lane].value[v.value]);
      });
    });
  });
}

// result = 0, of a channel that does not exist: its neighbours' rows are read together with it (`OutputTile::each_row`).
// What is read of it is not written anywhere, and is none of what another call left in shared memory either.
HYENAREC_DEVICE void clear_channel(const Warp& warp, char* result) {
  PerLane<Accumulator> c[2]{};
  each_sum(warp, c, result, [](float& held, float& sum) { held = sum; });
}

// result += T u of one channel; kInside: result = T u.
template <bool kTransposed, bool kInside, int P>
HYENAREC_DEVICE void convolve_channel(const Warp& warp, const Taps& taps, int number, const TapBlocks& blocks,
                                      const char* channel, char* result) {
  PerLane<Accumulator> c[2]{};
  if (!kInside) each_sum(warp, c, result, [](float& held, float& sum) { sum = held; });
  convolve_blocks<kTransposed, kInside, P>(warp, c, taps, number, blocks, channel);
  each_sum(warp, c, result, [](float& held, float& sum) { held = sum; });
}

}  // namespace hyenarec::cuda
