// Between a tile's rows and its moments: mu = Q^T (alpha u) on the way in, y += beta (Q nu) on the way out, with local
// polynomials Q that all channels share. On the way out Q is applied as q S: S maps a tile's moments to those of its
// four columns, and polynomials q of 64 rows map these to rows. That takes a quarter of the words, which are read for
// every channel, and half of the products.
//
// The window exp(-a lag) between two tiles is a product of alpha = exp(-a (256 - t)) on the way in, beta = exp(-a t) on
// the way out, and a rest that is in the tables between tiles. Transposed, alpha and beta change places.
#pragma once
#include "block_columns.h"

namespace hyenarec::cuda {

// How many planes, which add up to Q, hold Q for moments of 16-bit rows. In the gradient of a fast decay only the last
// rows of a tile and the first of the next count. There lags are smallest, and lags are the gradient's weights, so that
// what moments contribute is left over when larger terms cancel. With Q in bfloat16, 2e-3 to 3e-2 of the whole gradient
// were wrong at rates of .4 and more per event (600 to 1,024 taps, 8 to 32 terms). Moments for gradients therefore take
// Q in two planes, which left 2e-4 to 3e-3.
template <class T>
constexpr int kFinePlanes = sizeof(T) == 4 ? 1 : 2;

// The type in which moments are multiplied. float16 would overflow: moments may be 16 times as large as the rows.
template <class T>
using MomentType = std::conditional_t<std::is_same_v<T, Bfloat16>, Bfloat16, Float32>;

// Q (256, rank), S and q (64, rank) as operands of products, a lane's words side by side; ranks come in steps of 16.
//     in     Q^T (ranks, rows): [kDepth rows][16 ranks][plane][lane][4]
//     down   S^T (ranks of a tile, of a column): [kDepth ranks][column][8 ranks][lane][2]
//     out    q^T (ranks, rows): [kDepth ranks][8 rows][lane][2]; ranks in the order in which a lane has sums of them
struct Basis {
  const uint32_t *in, *down, *out;
  int rank, steps;  // steps: of 16 ranks

  template <class T>
  HYENAREC_DEVICE int64_t in_words() const {
    return int64_t(kTile / TensorCore<T>::kDepth) * steps * kFinePlanes<T> * 32 * 4;
  }
  template <class T>
  HYENAREC_DEVICE int64_t down_words() const {
    return int64_t(steps * 16 / TensorCore<MomentType<T>>::kDepth) * kTileColumns * (steps * 2) * 32 * 2;
  }
  template <class T>
  HYENAREC_DEVICE int64_t out_words() const {
    return int64_t(steps * 16 / TensorCore<MomentType<T>>::kDepth) * (kColumnRows / 8) * 32 * 2;
  }
};

// A round's moments in shared memory, ranks side by side, then one float that is not used, so that neighbouring
// channels are in different banks.
struct RoundMoments {
  float* values;
  int ranks, channels;
  HYENAREC_DEVICE float& at(int tile, int rank, int channel) const {
    return values[(tile * channels + channel) * (ranks + 1) + rank];
  }
  static HYENAREC_DEVICE int size(int ranks, int channels) { return kRoundTiles * channels * (ranks + 1); }

  // Calls f(tile, rank, channel) for the values that a thread handles; neighbouring threads have neighbouring channels.
  template <class F>
  HYENAREC_DEVICE void each_value(int thread, int threads, const F& f) const {
    for (int i = thread; i < kRoundTiles * ranks * channels; i += threads)
      f(i / channels / ranks, i / channels % ranks, i % channels);
  }
};

template <class T>
struct TileProducts {
  using Core = TensorCore<T>;
  using Far = TensorCore<MomentType<T>>;
  using Products = Toeplitz<T>;
  using Shape = TileBlock<T>;
  static constexpr int kInWord = Core::kInWord, kDepth = Core::kDepth;
  static constexpr int kUnitRows = 16 / int(sizeof(T));      // rows in 16 bytes
  static constexpr int kSteps = kColumnRows / kDepth;        // steps of a product over a column's rows

  // A warp's part of a round's moments: a product whose columns are two neighbouring tiles of four neighbouring
  // channels, which lie in different banks. `rates`: of the tile's channels, or null.
  template <int kFine>
  static HYENAREC_DEVICE void moments(const Warp& warp, const Pool<T>& pool, const char* zeros, const Tile& tile,
                                      const Basis& basis, const float* rates, bool reversed, const RoundMoments& to) {
    constexpr int kMostSteps = kMostRank / 16;
    PerLane<Accumulator> c[kMostSteps]{};
    static_assert(Shape::kWarps * 8 >= kRoundTiles * Shape::kVectors * Pool<T>::kVector && kRoundTiles == 4);
    auto channel = [&](int column) { return warp.number / 2 * 4 + column / 2; };
    auto tile_of = [&](int column) { return warp.number % 2 * 2 + column % 2; };
    auto there = [&](int column) {
      return channel(column) < to.channels && tile.first + channel(column) < tile.channels;
    };
    PerLane<float> rate;
    warp.lanes([&](int lane) { rate[lane] = rates && there(lane / 4) ? rates[channel(lane / 4)] : 0.f; });
    HYENAREC_ONE_BY_ONE for (int place = 0; place < kTileColumns; ++place) {
      PerLane<const char*> rows;
      warp.lanes([&](int lane) {
        int column = lane % 8;
        const char* at = there(column) ? pool.slot(channel(column), tile_of(column) * kTileColumns + place) : zeros;
        rows[lane] = at + lane / 8 * 16;
      });
      each<kSteps / 2>([&](auto pair) {
        auto four = load_matrices<false>(warp, [&](int lane) { return rows[lane] + pair.value * 64; });
        if (rates)
          warp.lanes([&](int lane) {
            each<4>([&](auto unit) {
              int row = place * kColumnRows + (pair.value * 4 + unit.value) * kUnitRows + lane % 4 * kInWord;
              scale(four[lane].word[unit.value], rate[lane], row, reversed);
            });
          });
        each<2>([&](auto half) {
          PerLane<Words<2>> b;
          warp.lanes([&](int lane) {
            b[lane] = {{four[lane].word[2 * half.value], four[lane].word[2 * half.value + 1]}};
          });
          int step = place * kSteps + pair.value * 2 + half.value;
          each<kMostSteps>([&](auto s) {
            if (s.value >= basis.steps) return;
            each<kFine>([&](auto plane) {
              PerLane<Words<4>> a;
              warp.lanes([&](int lane) {
                int64_t at = (int64_t(step * basis.steps + s.value) * kFinePlanes<T> + plane.value) * 32 + lane;
                auto v = reinterpret_cast<const Vector*>(basis.in)[at];
                a[lane] = {{v.word[0], v.word[1], v.word[2], v.word[3]}};
              });
              Core::multiply(c[s.value], a, b);
            });
          });
        });
      });
    }
    warp.lanes([&](int lane) {
      each<kMostSteps>([&](auto s) {
        each<4>([&](auto v) {
          int rank = s.value * 16 + lane / 4 + v.value / 2 * 8, column = lane % 4 * 2 + v.value % 2;
          if (s.value < basis.steps && there(column))
            to.at(tile_of(column), rank, channel(column)) = c[s.value][lane].value[v.value];
        });
      });
    });
  }

  // y += beta (Q nu) of one channel, some ranks of its columns' moments at a time.
  static HYENAREC_DEVICE void far(const Warp& warp, typename Products::Output& y, int channel, const Basis& basis,
                                  const float* rates, bool reversed, const RoundMoments& nu) {
    constexpr int kSums = Far::kDepth / 8;
    const float rate = rates ? rates[channel] : 0.f;
    const int depths = basis.steps * 16 / Far::kDepth;
    HYENAREC_ONE_BY_ONE for (int step = 0; step < depths; ++step) {
      PerLane<Accumulator> c[kSums]{};  // the moments of the columns, (columns, ranks)
      HYENAREC_ONE_BY_ONE for (int from = 0; from < depths; ++from)
        column_moments(warp, c, channel, basis, nu, from, step * kSums);
      PerLane<Words<4>> a;
      warp.lanes([&](int lane) {
        auto value = [&](int v) { return c[v / 4][lane].value[v % 4]; };
        if constexpr (Far::kInWord == 2)
          a[lane] = {{word(value(0), value(1)), word(value(2), value(3)), word(value(4), value(5)), word(value(6), value(7))}};
        else
          a[lane] = {{word(value(0), 0.f), word(value(2), 0.f), word(value(1), 0.f), word(value(3), 0.f)}};
      });
      each<Products::kTiles>([&](auto eight) {
        auto b = operand(warp, basis.out, step * Products::kTiles + eight.value);
        auto& sum = y[eight.value];
        if (!rates) return Far::multiply(sum, a, b);
        PerLane<Accumulator> far{};
        Far::multiply(far, a, b);
        warp.lanes([&](int lane) {
          each<2>([&](auto beside) {
            int row = lane / 4 % kTileColumns * kColumnRows + eight.value * 8 + lane % 4 * 2 + beside.value;
            float factor = expf(-rate * float(reversed ? kTile - row : row));
            each<2>([&](auto half) {
              sum[lane].value[2 * half.value + beside.value] += factor * far[lane].value[2 * half.value + beside.value];
            });
          });
        });
      });
    }
  }

 private:
  // c += S nu, from the tiles' ranks of step `from`. Each accumulator has 8 ranks of columns, the first those from
  // number `to` on. A row of the left operand is the tile of one column: of four columns, those at the same place have
  // the same S.
  template <int N>
  static HYENAREC_DEVICE void column_moments(const Warp& warp, PerLane<Accumulator> (&c)[N], int channel, const Basis& basis,
                                             const RoundMoments& nu, int from, int to) {
    PerLane<Words<4>> held;
    warp.lanes([&](int lane) {
      each<4>([&](auto w) {
        int rank = from * Far::kDepth + lane % 4 * Far::kInWord + w.value / 2 * (Far::kDepth / 2);
        int tile = lane / 4 / kTileColumns + w.value % 2 * 2;
        auto value = [&](int beside) { return nu.at(tile, rank + beside, channel); };
        held[lane].word[w.value] = word(value(0), Far::kInWord == 2 ? value(1) : 0.f);
      });
    });
    HYENAREC_ONE_BY_ONE for (int place = 0; place < kTileColumns; ++place) {
      PerLane<Words<4>> a;
      warp.lanes([&](int lane) {
        bool mine = lane / 4 % kTileColumns == place;
        each<4>([&](auto w) { a[lane].word[w.value] = mine ? held[lane].word[w.value] : 0; });
      });
      each<N>([&](auto i) {
        auto b = operand(warp, basis.down, (from * kTileColumns + place) * basis.steps * 2 + to + i.value);
        Far::multiply(c[i.value], a, b);
      });
    }
  }

  // A right operand: two words per lane.
  static HYENAREC_DEVICE PerLane<Words<2>> operand(const Warp& warp, const uint32_t* words, int number) {
    PerLane<Words<2>> b;
    warp.lanes([&](int lane) {
      Aligned<2> v = reinterpret_cast<const Aligned<2>*>(words)[number * 32 + lane];
      b[lane] = {{v.word[0], v.word[1]}};
    });
    return b;
  }

  static HYENAREC_DEVICE uint32_t word(float low, float high) {
    if constexpr (Far::kInWord == 2) return packed<MomentType<T>>(low, high);
    else return float_to_bits(low);
  }

  // Multiplies the rows in a word, `row` and for 16-bit types the next one, by alpha.
  static HYENAREC_DEVICE void scale(uint32_t& bits, float rate, int row, bool reversed) {
    auto factor = [&](int beside) {
      return expf(-rate * float(reversed ? row + beside : kTile - row - beside));
    };
    if constexpr (kInWord == 2)
      bits = packed<T>(unpacked<T>(bits, 0) * factor(0), unpacked<T>(bits, 1) * factor(1));
    else
      bits = float_to_bits(bits_to_float(bits) * factor(0));
  }
};

// Moments as the right operands of products between tiles: (channels, slots, ranks in steps of 16). The moments of a
// tile are ordered so that a lane has its two words side by side. There are `slots` slots from `first` on.
template <class T>
struct MomentWords {
  using Core = TensorCore<MomentType<T>>;
  static constexpr int kInWord = Core::kInWord, kDepth = Core::kDepth;
  uint32_t* words;
  int slots, first;

  static HYENAREC_DEVICE int count(int steps) { return steps * 16 / kInWord; }  // of a tile
  HYENAREC_DEVICE uint32_t* of(int channel, int slot, int steps) const {
    return words + (int64_t(channel) * slots + slot - first) * count(steps);
  }

  // Stores a thread's part of a round's moments.
  HYENAREC_DEVICE void put(int thread, int threads, const Tile& tile, int round, int tiles, int steps,
                           const RoundMoments& held) const {
    const int each = count(steps), all = kRoundTiles * each * held.channels;
    for (int i = thread; i < all; i += threads) {
      int word = i % each, number = i / each % kRoundTiles, channel = i / each / kRoundTiles;
      int slot = round * kRoundTiles + number;
      if (tile.first + channel < tile.channels && slot < tiles)
        of(tile.first + channel, slot, steps)[word] = operand(word, &held.at(number, 0, channel));
    }
  }

 private:
  static HYENAREC_DEVICE uint32_t operand(int word, const float* of_ranks) {
    int lane = word / 2 % 4, rank = word / 8 * kDepth + word % 2 * (kDepth / 2) + lane * kInWord;
    if constexpr (kInWord == 2) return packed<MomentType<T>>(of_ranks[rank], of_ranks[rank + 1]);
    else return float_to_bits(of_ranks[rank]);
  }
};

template <class T>
struct MomentsInput {
  Product source;
  bool reversed;         // scaled as the transposed operator's input
  float* moments;        // (slots, rank, channels), or null
  MomentWords<T> words;  // or null words
};

// The first pass: moments of every tile. kFine: the planes of Q that are used.
template <class T, int kFine>
struct TileMoments {
  using Shape = TileBlock<T>;
  static constexpr int kThreads = Shape::kThreads, kBlocks = sizeof(T) == 4 ? 2 : 3;
  TilePass<T> pass;
  int inputs;
  Basis basis;
  const float* rates;  // (channels,) or null
  MomentsInput<T> input[2];

  HYENAREC_DEVICE int64_t grid() const { return pass.grid() * inputs; }
  HYENAREC_DEVICE int held_bytes() const {
    return RoundMoments::size(basis.steps * 16, pass.tile_channels()) * int(sizeof(float));
  }
  HYENAREC_DEVICE int shared_bytes() const { return Shape::kZeros + Shape::kColumns + held_bytes() + pass.pool_bytes(); }

  template <class Block>
  HYENAREC_DEVICE void operator()(Block& block, int index, void* memory) const {
    auto* shared = static_cast<char*>(memory);
    auto& columns = *reinterpret_cast<Columns*>(shared + Shape::kZeros);
    RoundMoments held{reinterpret_cast<float*>(&columns + 1), basis.steps * 16, pass.tile_channels()};
    const Pool<T> pool = pass.pool(reinterpret_cast<char*>(held.values) + held_bytes());
    const MomentsInput<T>& from = input[index / pass.groups() % inputs];
    const Tile tile = pass.tile(index);
    for (int round = index / pass.groups() / inputs; round < pass.rounds(); round += pass.shares) {
      block.phase([&](int thread) {
        if (thread < kRoundColumns) pass.place(columns, thread, round, 0);
        if (thread < Shape::kZeros / 4) reinterpret_cast<uint32_t*>(shared)[thread] = 0;
      });
      block.phase([&](int thread) { fill(thread, kThreads, tile, columns, pool, from.source); });
      block.warps([&](const Warp& warp) {
        TileProducts<T>::template moments<kFine>(warp, pool, shared, tile, basis, rates ? rates + tile.first : nullptr,
                                                 from.reversed, held);
      });
      block.phase([&](int thread) {
        if (from.words.words)
          from.words.put(thread, kThreads, tile, round, pass.tiles.count, basis.steps, held);
        if (!from.moments) return;
        held.each_value(thread, kThreads, [&](int number, int rank, int channel) {
          int64_t slot = round * kRoundTiles + number;
          if (rank < basis.rank && tile.first + channel < tile.channels && slot < pass.tiles.count)
            from.moments[(slot * basis.rank + rank) * tile.channels + tile.first + channel] = held.at(number, rank, channel);
        });
      });
    }
  }
};

}  // namespace hyenarec::cuda
