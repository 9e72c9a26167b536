// What both passes over outputs share: the way back from a tile's nu to its rows, y += beta (Q nu), and the writing.
//
// A warp takes 16 rows at a time, a lane one of them and one behind it by 8, of a vector of adjacent channels: columns
// are dealt to lanes so that what a lane has of all its products is what it writes at once.
#pragma once
#include "block_moments.h"

namespace hyenarec::cuda {

struct FarField {
  Basis basis;
  const float* nu;     // (slots, rank, channels), or null
  const float* rates;  // (channels,) or null
  bool reversed;       // scaled as the transposed operator's output
};

template <class T, class S>
struct OutputTile {

  const Nodes& tiles;
  const Channels& channels;
  int number;  // of the slot
  Slot slot;
  int channel;    // the block's first
  int row_count;  // of padded input's batch rows

  // f(place, values): `result` and the far field of every row that the tile writes, a vector of channels at a time.
  template <class F>
  HYENAREC_DEVICE void each_row(const Warp& warp, char* result, int stride, const FarField& far, const F& f) const {
    constexpr int V = S::kVector, P = S::kPlanes;
    bool exists = Nodes::exists(slot, kTile);
    HYENAREC_ONE_BY_ONE
    for (int half = 0; half < 2; ++half) {
      int rows = warp.number * 2 + half;
      PerLane<Accumulator> c[S::kColumns]{};
      if (far.nu && exists) {
        HYENAREC_ONE_BY_ONE
        for (int step = 0; step < far.basis.steps; ++step) {
          auto a = far.basis.operand<P, P>(warp, far.basis.out, rows, step);
          each<S::kColumns>([&](auto column) {
            PerLane<Words<2>> b[P];
            warp.lanes([&](int lane) {
              each<2>([&](auto w) {
                int rank = step * 16 + lane % 4 * 2 + w.value * 8, g = lane / 4;
                uint32_t words[P];
                split(words, nu_at(far, rank, g / 2 * V + column.value * 2 + g % 2),
                      nu_at(far, rank + 1, g / 2 * V + column.value * 2 + g % 2));
                each<P>([&](auto p) { b[p.value][lane].word[w.value] = words[p.value]; });
              });
            });
            each<P>([&](auto p) {
              each<P - p.value>([&](auto q) {
                TensorCore<Bfloat16>::multiply(c[column.value], a.plane[p.value], b[q.value]);
              });
            });
          });
        }
      }
      warp.lanes([&](int lane) {
        int first = lane % 4 * V, at = channel + first;
        if (at >= channels.count) return;
        each<2>([&](auto later) {
          int row = rows * 16 + lane / 4 + later.value * 8;
          int64_t position = int64_t(slot.index) * kTile + row;
          float y[V];
          bool real = position < slot.length;
          each<V>([&](auto v) {
            float beyond = c[v.value / 2][lane].value[later.value * 2 + v.value % 2];
            if (far.rates && far.nu && at + v.value < channels.count)
              beyond *= expf(-far.rates[at + v.value] * (far.reversed ? kTile - row : row));
            const char* from = S::at(result, stride, first + v.value) + (rows * 20 + row % 16) * sizeof(float);
            y[v.value] = real ? *reinterpret_cast<const float*>(from) + beyond : 0.f;
          });
          Place place{tiles.per_sequence ? slot.sequence : 0, slot.start + position, at, channels.count - at};
          if (tiles.per_sequence) {  // rows around the sequence become zero: those behind it go on at the beginning
            if (position >= row_count) return;
            if (place.row >= row_count) place.row -= row_count;
          } else if (!real) {
            return;
          }
          f(place, y, real);
        });
      });
    }
  }

  // value * y * factor, where the factor is read only in rows of the sequence.
  HYENAREC_DEVICE void put(const Product& to, const Place& place, const float (&y)[S::kVector], bool real) const {
    if (!to.value.data) return;
    float v[S::kVector];
    each<S::kVector>([&](auto i) { v[i.value] = y[i.value]; });
    if (real) multiply<T>(v, to.factor, place);
    write<T>(v, to.value, place);
  }

 private:
  HYENAREC_DEVICE float nu_at(const FarField& far, int rank, int c) const {
    bool inside = rank < far.basis.rank && channel + c < channels.count;
    return inside ? far.nu[(int64_t(number) * far.basis.rank + rank) * channels.count + channel + c] : 0.f;
  }
};

// A pair of tiles that the filter's end cuts, `distance` apart.
struct EdgePair {
  int distance;
  TapBlocks blocks;
};
constexpr int kMostEdges = 2;

// The taps of a pass: inside tiles, and of the filter's end.
struct AllTaps {
  Taps near, edge;
  int edges;  // pairs
  EdgePair pairs[kMostEdges];

  // Round 0 is the tile itself.
  HYENAREC_DEVICE EdgePair pair(int round) const { return round ? pairs[round - 1] : EdgePair{0, {0, 0, 15}}; }
};

}  // namespace hyenarec::cuda
