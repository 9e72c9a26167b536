// One warp's products for one channel of 16 columns (columns.h): the convolution with the channel's taps, its transpose,
// and the sums over rows that are the taps' gradient. Each is a product of matrices of which one is Toeplitz.
//
// Convolution: y (16 columns, 64 rows) = sum over steps of u (16 columns, kStep rows) W (kStep, 64), W[s, t] = h[t - s],
// from the column's last rows backwards. Of W, a lane's words for neighbouring tiles of 8 rows are the same words moved
// along: a step needs 8 kLagsApart + 1 of them, and the next step the same but two. They come from a table of the taps
// in shared memory: word x is (h[x], h[x - 1]) of 16-bit types and h[x] of Float32, from x = -kBefore on, with zeros
// around the taps.
//
// Gradient: G_m (16 rows of the gradient, 8 rows of the input) = sum over the 16 columns of dy[8 b + i] u[8 (b - m) + j],
// for even m: the sums along its diagonals belong to lags 8 m + i - j. Going back 16 rows of the input at a time, each
// step ends with the last products of one G_m: five of them are under way.
#pragma once
#include "columns.h"

namespace hyenarec::cuda {

// Of one channel in a pool.
struct ColumnView {
  const char* first;   // the round's first column
  const int* reach;    // of every column: how many more there are of its sequence, backwards or forwards
  const char* zeros;   // 32 bytes
};

template <class T>
struct Toeplitz {
  using Core = TensorCore<T>;
  static constexpr int kInWord = Core::kInWord;
  static constexpr int kStep = Core::kDepth, kSteps = kColumnRows / kStep;
  static constexpr int kTiles = kColumnRows / 8;                 // of 8 output rows
  static constexpr int kLags = kStep / 2, kPerTile = 8 / kLags;  // between words; words from a tile to the next one
  static constexpr int kWindow = kTiles * kPerTile + 1;
  static constexpr int kBefore = 16;
  static constexpr int kSlotBytes = Pool<T>::kSlotBytes;

  static HYENAREC_DEVICE int table_words(int taps) { return taps + 2 * kBefore; }
  static HYENAREC_DEVICE uint32_t table_word(const float* taps, int count, int word) {
    auto tap = [&](int lag) { return lag >= 0 && lag < count ? taps[lag] : 0.f; };
    int lag = word - kBefore;
    if constexpr (kInWord == 1) return float_to_bits(tap(lag));
    else return packed<T>(tap(lag), tap(lag - 1));
  }

  // The channel's rows become y + skip u, in place. Transposed: lags reach forwards.
  template <bool kTransposed>
  static HYENAREC_DEVICE void convolve(const Warp& warp, const ColumnView& view, char* out, int reach,
                                       const uint32_t* table, int taps, float skip) {
    PerLane<Accumulator> y[kTiles]{};
    PerLane<Words<kWindow>> window;
    PerLane<int> lag;  // that the lane's word at lag 0 of a tile is for
    warp.lanes([&](int lane) {
      int back = lane / 4 - kInWord * (lane % 4);
      lag[lane] = kBefore + (kTransposed ? kInWord - 1 - back : back);
    });
    auto word = [&](int lane, int m) {
      int at = kLags * m + lag[lane], last = table_words(taps) - 1;
      uint32_t bits = table[at < last ? at : last];
      return kTransposed && kInWord == 2 ? bits << 16 | bits >> 16 : bits;
    };
    warp.lanes([&](int lane) {
      each<kWindow>([&](auto j) {
        constexpr int m = decltype(j)::value - (kWindow - 2);
        window[lane].word[j.value] = m >= -1 ? word(lane, m) : 0;
      });
    });
    int steps = (taps + kColumnRows - 2) / kStep + 1, reached = (reach + 1) * kSteps;
    HYENAREC_ONE_BY_ONE for (int d = 0; d < steps && d < reached; ++d) {
      auto u = load_matrices<false>(warp, [&](int lane) {
        return part(view, lane, kTransposed ? d * kStep : kColumnRows - (d + 1) * kStep);
      });
      each<kTiles>([&](auto i) {
        constexpr int low = kTransposed ? kPerTile * i.value + kPerTile - 1 : kPerTile * i.value + 1;
        constexpr int high = kTransposed ? low + 1 : low - 1;
        PerLane<Words<2>> h;
        warp.lanes([&](int lane) { h[lane] = {window[lane].word[low], window[lane].word[high]}; });
        Core::multiply(y[kTransposed ? kTiles - 1 - i.value : i.value], u, h);
      });
      warp.lanes([&](int lane) {
        each<kWindow - 2>([&](auto j) { window[lane].word[j.value] = window[lane].word[j.value + 2]; });
        window[lane].word[kWindow - 2] = word(lane, 2 * d + 2);
        window[lane].word[kWindow - 1] = word(lane, 2 * d + 3);
      });
    }

    warp.sync();  // every lane has read what is overwritten now
    warp.lanes([&](int lane) {
      each<kTiles>([&](auto i) {
        each<2>([&](auto half) {
          int column = lane / 4 + 8 * half.value, row = 8 * i.value + 2 * (lane % 4);
          char* at = out + column * kSlotBytes + row * int(sizeof(T));
          const float* sum = &y[i.value][lane].value[2 * half.value];
          store(at, sum[0], sum[1], skip);
        });
      });
    });
  }

  // sums[lag] (+)= sum over the columns' rows of dy[t] u[t - lag], for each lag below `taps`.
  static HYENAREC_DEVICE void correlate(const Warp& warp, const ColumnView& dy, const ColumnView& u, float* sums,
                                        int taps, bool add) {
    PerLane<Words<kTileWords>> gradient[kTiles];
    auto load_gradient = [&] {
      each<kTiles / 2>([&](auto p) {
        load_tiles(warp, dy, 16 * p.value, gradient[2 * p.value], gradient[2 * p.value + 1]);
      });
    };
    constexpr bool kHeld = kInWord == 2;  // 16 registers; 32 of Float32 would be too many
    if (kHeld) load_gradient();
    PerLane<Words<kTileWords>> none{};
    constexpr int kUnderWay = 5;
    PerLane<Accumulator> g[kUnderWay]{};
    PerLane<Accumulator> before{};  // the G that was finished last
    HYENAREC_ONE_BY_ONE for (int d = 0; 16 * d < taps + 72; ++d) {
      if (!kHeld) load_gradient();
      PerLane<Words<kTileWords>> even, odd;  // tiles 2 (3 - d) and the one after it
      load_tiles(warp, u, kColumnRows - 16 * (d + 1), even, odd);
      each<kUnderWay>([&](auto k) {
        constexpr int b = 2 * decltype(k)::value - 1;  // the first of two tiles of the gradient
        if constexpr (b > 0) add_product(warp, g[k.value], gradient[b - 1], gradient[b], even);
        if constexpr (b < 0) add_product(warp, g[k.value], none, gradient[0], odd);
        else if constexpr (b + 1 == kTiles) add_product(warp, g[k.value], gradient[b], none, odd);
        else add_product(warp, g[k.value], gradient[b], gradient[b + 1], odd);
      });
      finish(warp, before, g[0], 16 * (d - 4) - 8, sums, taps, add);
      before = g[0];
      each<kUnderWay - 1>([&](auto k) { g[k.value] = g[k.value + 1]; });
      g[kUnderWay - 1] = {};
    }
  }

 private:
  // Words of a lane for 8 rows of all columns: of 16-bit types column 2q, 2q + 1 (and 8 on) of row g, else one column.
  static constexpr int kTileWords = kRoundColumns / (4 * kInWord);

  // 16 bytes from `row` of column lane % 16 on, or the next ones for lanes from 16 on.
  static HYENAREC_DEVICE const char* part(const ColumnView& view, int lane, int row) {
    int column = lane % kRoundColumns, apart = row >> 6;  // rounded down
    if ((apart < 0 ? -apart : apart) > view.reach[column]) return view.zeros;
    return view.first + (column + apart) * kSlotBytes + (row & (kColumnRows - 1)) * int(sizeof(T)) + lane / 16 * 16;
  }
  static_assert(kColumnRows == 64);

  static HYENAREC_DEVICE void load_tiles(const Warp& warp, const ColumnView& view, int row,
                                         PerLane<Words<kTileWords>>& low, PerLane<Words<kTileWords>>& high) {
    if constexpr (kInWord == 2) {
      auto both = load_matrices<true>(warp, [&](int lane) { return part(view, lane, row); });
      warp.lanes([&](int lane) {
        low[lane] = {both[lane].word[0], both[lane].word[1]};
        high[lane] = {both[lane].word[2], both[lane].word[3]};
      });
    } else {
      int apart = row >> 6;
      warp.lanes([&](int lane) {
        const char* at = view.first + (apart + lane % 4) * kSlotBytes + ((row & (kColumnRows - 1)) + lane / 4) * int(sizeof(T));
        each<kTileWords>([&](auto w) {
          bool there = apart == 0 || -apart <= view.reach[4 * w.value + lane % 4];
          auto* words = reinterpret_cast<const uint32_t*>(at + 4 * w.value * kSlotBytes);
          low[lane].word[w.value] = there ? words[0] : 0;
          high[lane].word[w.value] = there ? words[8] : 0;
        });
      });
    }
  }

  static HYENAREC_DEVICE void add_product(const Warp& warp, PerLane<Accumulator>& g, const PerLane<Words<kTileWords>>& top,
                                          const PerLane<Words<kTileWords>>& bottom,
                                          const PerLane<Words<kTileWords>>& u) {
    each<kTileWords / 2>([&](auto k) {
      constexpr int w = 2 * decltype(k)::value;
      PerLane<Words<4>> a;
      PerLane<Words<2>> b;
      warp.lanes([&](int lane) {
        a[lane] = {top[lane].word[w], bottom[lane].word[w], top[lane].word[w + 1], bottom[lane].word[w + 1]};
        b[lane] = {u[lane].word[w], u[lane].word[w + 1]};
      });
      Core::multiply(g, a, b);
    });
  }

  // Lags `lag` to `lag` + 15, which end in the lower half of the upper one of two G: its value v of lane (g, q) is of
  // lag 16 m + 8 (v / 2) + g - 2 q - v % 2.
  static HYENAREC_DEVICE void finish(const Warp& warp, const PerLane<Accumulator>& lower,
                                     const PerLane<Accumulator>& upper, int lag, float* sums, int taps, bool add) {
    if (lag + 15 < 0) return;
    PerLane<float> total[2];
    each<2>([&](auto half) {
      each<2>([&](auto e) {
        PerLane<float> chosen;  // the lag that lane (g - s) mod 8 has is in this half where g >= s, else in the next one
        warp.lanes([&](int lane) {
          int s = 2 * (lane % 4) + e.value;
          float here = half.value == 0 ? lower[lane].value[2 + e.value] : upper[lane].value[e.value];
          float next = half.value == 0 ? upper[lane].value[e.value] : upper[lane].value[2 + e.value];
          chosen[lane] = lane / 4 >= s ? here : next;
        });
        auto moved = warp.shuffle(chosen, [&](int lane) {
          return (lane / 4 + 2 * (lane % 4) + e.value) % 8 * 4 + lane % 4;
        });
        warp.lanes([&](int lane) {
          total[half.value][lane] = e.value == 0 ? moved[lane] : total[half.value][lane] + moved[lane];
        });
      });
      each<2>([&](auto bit) {
        auto other = warp.shuffle(total[half.value], [&](int lane) { return lane ^ (1 << bit.value); });
        warp.lanes([&](int lane) { total[half.value][lane] += other[lane]; });
      });
    });
    warp.lanes([&](int lane) {
      int half = lane % 4, at = lag + 8 * half + lane / 4;
      if (half > 1 || at < 0 || at >= taps) return;
      float sum = half == 0 ? total[0][lane] : total[1][lane];
      sums[at] = add ? sums[at] + sum : sum;
    });
  }

  static HYENAREC_DEVICE void store(char* at, float first, float second, float skip) {
    if constexpr (kInWord == 2) {
      auto* word = reinterpret_cast<uint32_t*>(at);
      *word = packed<T>(first + skip * unpacked<T>(*word, 0), second + skip * unpacked<T>(*word, 1));
    } else {
      auto* value = reinterpret_cast<float*>(at);
      float a = first + skip * value[0], b = second + skip * value[1];
      value[0] = a, value[1] = b;
    }
  }
};

}  // namespace hyenarec::cuda
