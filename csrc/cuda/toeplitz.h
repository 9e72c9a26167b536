// What one warp computes for one channel of 16 columns (columns.h): the convolution with the channel's taps, its
// transpose, and the taps' gradient, which is sums over rows. Each is a matrix product with a Toeplitz matrix.
//
// Convolution: y (16 columns, 64 rows) = sum over steps of u (16 columns, kStep rows) W (kStep, 64), W[s, t] =
// h[t - s], from the column's last rows backwards. A lane's words of W for neighbouring tiles of 8 rows are the same
// words, shifted: a step needs 8 kPerTile + 1 of them, and the next step all but two of the same. They come from a
// table of the taps in shared memory: word x is (h[x], h[x - 1]) for 16-bit types and h[x] for Float32, from
// x = -kBefore on, with zeros around the taps.
//
// Gradient: G_m (16 rows of the gradient, 8 rows of the input) = sum over even b and the 16 columns of dy[8 b + i]
// times u[8 (b - m) + j]; the sums along its diagonals belong to lags 8 m + i - j. A step goes back 16 rows of the
// input; it adds to eight G_m and completes two of them.
#pragma once
#include "columns.h"

namespace hyenarec::cuda {

// The columns of one channel in a pool (columns.h).
struct ColumnView {
  const char* first;   // the round's first column
  const int* reach;    // for every column: how many columns of its sequence come before it (or after it)
  const int* other;    // the same on the other side; null unless products begin `ahead` (Toeplitz::convolve)
  const char* zeros;   // `Toeplitz::kZeros` bytes

  HYENAREC_DEVICE bool holds(int column, int apart) const {
    return apart <= reach[column] && (other == nullptr || -apart <= other[column]);
  }
};

template <class T>
struct Toeplitz {
  using Core = TensorCore<T>;
  static constexpr int kInWord = Core::kInWord;
  static constexpr int kStep = Core::kDepth, kSteps = kColumnRows / kStep;
  static constexpr int kTiles = kColumnRows / 8;                 // of 8 output rows
  static constexpr int kLags = kStep / 2, kPerTile = 8 / kLags;  // lags between words; words between tiles
  static constexpr int kUsed = kTiles * kPerTile + 1, kHeld = kUsed + 2 * (kSteps - 1);
  static constexpr int kBefore = 16;
  static constexpr int kSlotBytes = Pool<T>::kSlotBytes;
  static constexpr int kZeros = kSlotBytes + 112;  // a column of zeros that begins at any bank

  // How many columns the taps reach, the column itself included: its first row needs taps - 1 rows before it.
  static HYENAREC_DEVICE int columns(int taps) { return (taps + kColumnRows - 2) / kColumnRows + 1; }
  static HYENAREC_DEVICE int table_words(int taps) { return kBefore + columns(taps) * kColumnRows + 8; }
  static HYENAREC_DEVICE uint32_t table_word(const float* taps, int count, int word) {
    auto tap = [&](int lag) { return lag >= 0 && lag < count ? taps[lag] : 0.f; };
    int lag = word - kBefore;
    if constexpr (kInWord == 1) return float_to_bits(tap(lag));
    else return packed<T>(tap(lag), tap(lag - 1));
  }

  // A channel's output: 16 columns of 64 rows.
  using Output = PerLane<Accumulator>[kTiles];

  // y += the products with the columns up to `reach` before each column; transposed, after it. With `ahead` > 0, lag 0
  // of the table lies between columns that are `ahead` columns apart in the other direction, so the columns on that
  // side, again up to `reach`, contribute too.
  template <bool kTransposed>
  static HYENAREC_DEVICE void convolve(const Warp& warp, Output& y, const ColumnView& view, int reach, int ahead,
                                       const uint32_t* table, int taps) {
    PerLane<Words<kHeld>> held;
    PerLane<const uint32_t*> words;  // the first word that a lane takes for the next column
    auto word = [&](int lane, int number) {
      uint32_t bits = words[lane][kLags * number];
      return kTransposed && kInWord == 2 ? bits << 16 | bits >> 16 : bits;
    };
    warp.lanes([&](int lane) {
      int back = lane / 4 - kInWord * (lane % 4);
      words[lane] = table + kBefore + (kTransposed ? kInWord - 1 - back : back);
      each<kUsed - 3>([&](auto j) { held[lane].word[j.value] = 0; });
      held[lane].word[kUsed - 3] = word(lane, -1);
    });
    int last = columns(taps) - 1;
    HYENAREC_ONE_BY_ONE for (int number = 0; number <= last && number - ahead <= reach; ++number) {
      const int apart = number - ahead;
      PerLane<const char*> rows;
      warp.lanes([&](int lane) {
        each<2 * kSteps>([&](auto j) { held[lane].word[kUsed - 2 + j.value] = word(lane, j.value); });
        rows[lane] = column_of(view, lane, apart, kTransposed) + lane / 16 * 16;
      });
      if (apart >= -reach)
        each<kSteps>([&](auto s) {
          constexpr int step = decltype(s)::value, row = kStep * (kTransposed ? step : kSteps - 1 - step);
          auto u = load_matrices<false>(warp, [&](int lane) { return rows[lane] + row * int(sizeof(T)); });
          each<kTiles>([&](auto i) {
            constexpr int at = 2 * step + kPerTile * decltype(i)::value;
            constexpr int low = at + (kTransposed ? kPerTile - 1 : 1), high = at + (kTransposed ? kPerTile : 0);
            PerLane<Words<2>> h;
            warp.lanes([&](int lane) { h[lane] = {held[lane].word[low], held[lane].word[high]}; });
            Core::multiply(y[kTransposed ? kTiles - 1 - i.value : i.value], u, h);
          });
        });
      warp.lanes([&](int lane) {
        each<kUsed - 2>([&](auto j) { held[lane].word[j.value] = held[lane].word[j.value + 2 * kSteps]; });
        words[lane] += kColumnRows;
      });
    }
  }

  // Overwrites the channel's rows u with y, or with y + skip u.
  template <bool kSkip>
  static HYENAREC_DEVICE void put(const Warp& warp, const Output& y, char* out, float skip = 0.f) {
    warp.sync();  // every lane has read what is overwritten now
    warp.lanes([&](int lane) {
      each<kTiles>([&](auto i) {
        each<2>([&](auto half) {
          int column = lane / 4 + 8 * half.value, row = 8 * i.value + 2 * (lane % 4);
          char* at = out + column * kSlotBytes + row * int(sizeof(T));
          const float* sum = &y[i.value][lane].value[2 * half.value];
          store<kSkip>(at, sum[0], sum[1], skip);
        });
      });
    });
  }

  // sums[lag] (+)= sum over the columns' rows of dy[t] u[t - lag], for each lag below `taps`. With `ahead` > 0, lag 0
  // lies between columns that are `ahead` columns apart in the other direction. Columns further apart than `reach` are
  // left out.
  static HYENAREC_DEVICE void correlate(const Warp& warp, const ColumnView& dy, const ColumnView& u, int reach, int ahead,
                                        float* sums, int taps, bool add) {
    Rows16 gradient[kTiles / 2];
    each<kTiles / 2>([&](auto p) { load_rows(warp, dy, 16 * p.value, gradient[p.value]); });
    constexpr int kUnderWay = 2 * kTiles - 2, kPast = kTiles;  // G_m of a column, and how many it completes
    PerLane<Accumulator> g[kUnderWay]{};                       // m = 8 apart - 7 + index
    Ended ended{};
    HYENAREC_ONE_BY_ONE for (int apart = 0; kColumnRows * (apart - 1) < taps; ++apart) {
      const auto columns = columns_of(warp, u, apart - ahead);
      each<kColumnRows / 16>([&](auto s) {
        constexpr int step = decltype(s)::value;
        PerLane<Words<kTileWords>> even, odd;
        if (apart - ahead <= reach && ahead - apart <= reach) {
          load_tiles(warp, u, columns, apart - ahead, kColumnRows - 16 * (step + 1), even, odd);
          each<kTiles / 2>([&](auto p) {
            add_product(g[2 * (step + p.value)], gradient[p.value], odd);
            add_product(g[2 * (step + p.value) + 1], gradient[p.value], even);
          });
        }
        finish(warp, ended, g[2 * step], g[2 * step + 1], kColumnRows * (apart - 1) + 16 * step, sums, taps, add);
      });
      each<kUnderWay - kPast>([&](auto k) { g[k.value] = g[k.value + kPast]; });
      each<kPast>([&](auto k) { g[kUnderWay - kPast + k.value] = {}; });
    }
  }

 private:
  // A lane's words for 8 rows of all columns. For 16-bit types a word is columns 2q and 2q + 1 (or those 8 further on)
  // of row g, for Float32 one column.
  static constexpr int kTileWords = kRoundColumns / (4 * kInWord);

  // The column `apart` before column lane % 16, or after it (`behind`). Where the view does not hold it: zeros, in the
  // banks where it would be.
  static HYENAREC_DEVICE const char* column_of(const ColumnView& view, int lane, int apart, bool behind) {
    int column = lane % kRoundColumns;
    const char* at = view.first + (column + (behind ? apart : -apart)) * kSlotBytes;
    return view.holds(column, apart) ? at : view.zeros + (int(at - view.zeros) & 112);
  }

  // Where each lane begins to load the columns `apart` before the round's; for 16-bit types.
  static HYENAREC_DEVICE PerLane<const char*> columns_of(const Warp& warp, const ColumnView& view, int apart) {
    PerLane<const char*> at{};
    if constexpr (kInWord == 2)
      warp.lanes([&](int lane) { at[lane] = column_of(view, lane, apart, false) + lane / 16 * 16; });
    return at;
  }

  // Loads 8 rows, from `row` on, of the columns `apart` before the round's to `low`, and the next 8 rows to `high`.
  static HYENAREC_DEVICE void load_tiles(const Warp& warp, const ColumnView& view, const PerLane<const char*>& columns,
                                         int apart, int row, PerLane<Words<kTileWords>>& low,
                                         PerLane<Words<kTileWords>>& high) {
    if constexpr (kInWord == 2) {
      auto both = load_matrices<true>(warp, [&](int lane) { return columns[lane] + row * int(sizeof(T)); });
      warp.lanes([&](int lane) {
        low[lane] = {both[lane].word[0], both[lane].word[1]};
        high[lane] = {both[lane].word[2], both[lane].word[3]};
      });
    } else {
      warp.lanes([&](int lane) {
        const char* at = view.first + (lane % 4 - apart) * kSlotBytes + (row + lane / 4) * int(sizeof(T));
        each<kTileWords>([&](auto w) {
          bool there = apart == 0 || view.holds(4 * w.value + lane % 4, apart);
          auto* words = reinterpret_cast<const uint32_t*>(at + 4 * w.value * kSlotBytes);
          low[lane].word[w.value] = there ? words[0] : 0;
          high[lane].word[w.value] = there ? words[8] : 0;
        });
      });
    }
  }

  // 16 rows of the columns themselves, as the words of matrix a.
  struct Rows16 {
    PerLane<Words<4>> part[kTileWords / 2];
  };
  static HYENAREC_DEVICE void load_rows(const Warp& warp, const ColumnView& view, int row, Rows16& rows) {
    if constexpr (kInWord == 2) {
      rows.part[0] = load_matrices<true>(warp, [&](int lane) {
        return view.first + (lane % 8 + lane / 16 * 8) * kSlotBytes + (row + lane / 8 % 2 * 8) * int(sizeof(T));
      });
    } else {
      PerLane<Words<kTileWords>> low, high;
      load_tiles(warp, view, {}, 0, row, low, high);
      warp.lanes([&](int lane) {
        each<kTileWords / 2>([&](auto k) {
          constexpr int w = 2 * decltype(k)::value;
          rows.part[k.value][lane] = {low[lane].word[w], high[lane].word[w], low[lane].word[w + 1], high[lane].word[w + 1]};
        });
      });
    }
  }

  static HYENAREC_DEVICE void add_product(PerLane<Accumulator>& g, const Rows16& rows,
                                          const PerLane<Words<kTileWords>>& u) {
    each<kTileWords / 2>([&](auto k) {
      PerLane<Words<2>> b;
#ifdef __CUDA_ARCH__
      b.own = {u.own.word[2 * k.value], u.own.word[2 * k.value + 1]};
#else
      for (int lane = 0; lane < 32; ++lane) b[lane] = {u[lane].word[2 * k.value], u[lane].word[2 * k.value + 1]};
#endif
      Core::multiply(g, rows.part[k.value], b);
    });
  }

  // What the completed G_m hold for the last 8 lags and the 7 before them, and for the 8 lags after these.
  struct Ended {
    PerLane<Words<2>> last, later;
  };

  // Two more G_m are complete, and with them the sums of lags `lag` to `lag` + 15. Value v of lane (g, q) of G_m
  // belongs to lag 8 m + 8 (v / 2) + g - 2q - v % 2. The lanes' values for eight lags and the seven before them are
  // added up by lag.
  static HYENAREC_DEVICE void finish(const Warp& warp, Ended& ended, const PerLane<Accumulator>& first,
                                     const PerLane<Accumulator>& second, int lag, float* sums, int taps, bool add) {
    PerLane<Words<2>> middle, last;
    warp.lanes([&](int lane) {
      each<2>([&](auto e) {
        float later = bits_to_float(ended.later[lane].word[e.value]);
        middle[lane].word[e.value] = float_to_bits(later + first[lane].value[e.value]);
        last[lane].word[e.value] = float_to_bits(first[lane].value[2 + e.value] + second[lane].value[e.value]);
        ended.later[lane].word[e.value] = float_to_bits(second[lane].value[2 + e.value]);
      });
    });
    if (lag >= 0) {
      PerLane<float> total[2];
      each<2>([&](auto half) {
        each<2>([&](auto e) {
          PerLane<float> chosen;  // for lag (g - s) mod 8: of these 8 lags where g >= s, else of the next
          warp.lanes([&](int lane) {
            const auto& here = half.value == 0 ? ended.last : middle;
            const auto& next = half.value == 0 ? middle : last;
            int s = 2 * (lane % 4) + e.value;
            chosen[lane] = bits_to_float(lane / 4 >= s ? here[lane].word[e.value] : next[lane].word[e.value]);
          });
          auto moved = warp.shuffle(chosen, [&](int lane) {
            return (lane / 4 + 2 * (lane % 4) + e.value) % 8 * 4 + lane % 4;
          });
          warp.lanes([&](int lane) {
            total[half.value][lane] = e.value == 0 ? moved[lane] : total[half.value][lane] + moved[lane];
          });
        });
      });
      PerLane<float> sum, sent;  // even lanes sum the first half, odd ones the second
      warp.lanes([&](int lane) {
        float first = total[0][lane], second = total[1][lane];
        sum[lane] = lane % 2 ? second : first, sent[lane] = lane % 2 ? first : second;
      });
      auto got = warp.shuffle(sent, [&](int lane) { return lane ^ 1; });
      warp.lanes([&](int lane) { sum[lane] += got[lane]; });
      got = warp.shuffle(sum, [&](int lane) { return lane ^ 2; });
      warp.lanes([&](int lane) {
        int half = lane % 4, at = lag + 8 * half + lane / 4;
        if (half > 1 || at >= taps) return;
        float all = sum[lane] + got[lane];
        sums[at] = add ? sums[at] + all : all;
      });
    }
    ended.last = last;
  }

  template <bool kSkip>
  static HYENAREC_DEVICE void store(char* at, float first, float second, float skip) {
    if constexpr (kInWord == 2) {
      auto* word = reinterpret_cast<uint32_t*>(at);
      if constexpr (kSkip) first += skip * unpacked<T>(*word, 0), second += skip * unpacked<T>(*word, 1);
      *word = packed<T>(first, second);
    } else {
      auto* value = reinterpret_cast<float*>(at);
      if constexpr (kSkip) first += skip * value[0], second += skip * value[1];
      value[0] = first, value[1] = second;
    }
  }
};

}  // namespace hyenarec::cuda
