// Between tiles: a round's nu, from the moments of the tiles that the round's tiles meet and from their parents' nu.
//
//     nu_i = sum_k M^(k) mu_{i - k} + w S nu above
//
// A warp computes one channel. In its matrix product the ranks are rows and the round's tiles columns, so M^(k) is read
// once for all of them. Transposed, tiles meet later tiles, and M^(k) is transposed.
#pragma once
#include "block_levels.h"

namespace hyenarec::cuda {

template <class T>
struct TilesBetween {
  using Core = TensorCore<MomentType<T>>;
  static constexpr int kDepth = Core::kDepth, kInWord = Core::kInWord, kMostSteps = kMostRank / 16;

  MomentWords<T> moments;   // null words: no levels
  const uint32_t* tables;   // (distances, groups), each [16 ranks][kDepth ranks][lane][4]
  LevelShape shape;
  int steps;                // of 16 ranks
  Nodes parents;
  int rank_above;
  const float* above;       // (parents, rank above, channels), or null: there is no level above
  const float* transfer;    // (fan, rank, rank above)
  const float* rates;       // (channels,) or null

  static HYENAREC_DEVICE int table_words(int steps) { return steps * (steps * 16 / kDepth) * 128; }

  // Writes what comes from the level above to `nu`.
  HYENAREC_DEVICE void come_down(int thread, int threads, const TilePass<T>& pass, const Tile& tile, int round,
                                 bool reversed, const RoundMoments& nu) const {
    nu.each_value(thread, threads, [&](int number, int rank, int channel) {
      int64_t slot = int64_t(round) * kRoundTiles + number;
      float sum = 0.f;
      if (above && rank < shape.rank && tile.first + channel < tile.channels && slot < pass.tiles.count) {
        Slot at = pass.tiles.slots[slot];
        if (Nodes::exists(at, kTile)) {
          int place = at.index % shape.fan;
          int64_t parent = parents.first(at) + at.index / shape.fan;
          const float *from = above + parent * rank_above * tile.channels + tile.first + channel;
          const float *weights = transfer + (place * shape.rank + rank) * rank_above;
          for (int s = 0; s < rank_above; ++s) sum += weights[s] * from[int64_t(s) * tile.channels];
          if (rates)
            sum *= expf(-rates[tile.first + channel] * float(shape.chunk * (reversed ? shape.fan - 1 - place : place)));
        }
      }
      nu.at(number, rank, channel) = sum;
    });
  }

  // nu += what comes, in one channel, from the tiles that those of the round meet.
  HYENAREC_DEVICE void meet(const Warp& warp, const TilePass<T>& pass, const Columns& columns, const MomentWords<T>& moments,
                            int channel, int of_tile, int round, bool reversed, const RoundMoments& nu) const {
    PerLane<Accumulator> c[kMostSteps]{};
    PerLane<int> index, tiles, most;  // a lane's column: its tile's index, its sequence's tiles, its near distances
    PerLane<const Aligned<2>*> from, at;  // the tile's moments
    PerLane<const Vector*> table;
    const int ranks = steps * 16, tile_vectors = ranks / kInWord / 2, step_vectors = table_words(steps) / 4;
    const int64_t next_table = int64_t(pass.channels.groups) * step_vectors;
    const Vector* tables_of = reinterpret_cast<const Vector*>(tables) + int64_t(pass.channels.group(channel)) * step_vectors;
    warp.lanes([&](int lane) {
      const Span& span = columns.span[lane / 4 % kRoundTiles * kTileColumns];
      int i = span.number / kTileColumns, count = int(ceil_div(span.length, kTile));
      index[lane] = i, tiles[lane] = lane / 4 < kRoundTiles ? count : 0;
      int earlier = shape.fan ? i % shape.fan : i, later = shape.fan ? shape.fan - 1 - earlier : shape.near_pairs;
      int reach = !reversed ? earlier : later < count - 1 - i ? later : count - 1 - i;
      most[lane] = i >= tiles[lane] ? 0 : reach < shape.near_pairs ? reach : shape.near_pairs;
      int slot = round * kRoundTiles + lane / 4;
      from[lane] = reinterpret_cast<const Aligned<2>*>(moments.of(channel, slot, steps)) + lane % 4;
      at[lane] = from[lane], table[lane] = tables_of + lane;
      if (above) each_rank(lane, [&](int tile, int rank, int step, int v) { c[step][lane].value[v] = nu.at(tile, rank, of_tile); });
    });
    auto products = [&](const auto& meets) {
      each<kMostRank / kDepth>([&](auto step) {
        if (step.value >= ranks / kDepth) return;
        PerLane<Words<2>> b;
        warp.lanes([&](int lane) {
          b[lane] = {};
          if (!meets(lane)) return;
          Aligned<2> v = at[lane][step.value * 4];
          b[lane] = {{v.word[0], v.word[1]}};
        });
        each<kMostSteps>([&](auto s) {
          if (s.value >= steps) return;
          PerLane<Words<4>> a;
          warp.lanes([&](int lane) {
            Vector v = table[lane][(s.value * (ranks / kDepth) + step.value) * 32];
            a[lane] = {{v.word[0], v.word[1], v.word[2], v.word[3]}};
          });
          Core::multiply(c[s.value], a, b);
        });
      });
    };
    const int reach = reversed ? columns.most_after : columns.most_before;  // no tile of the round has more partners
    const int side = reversed ? tile_vectors : -tile_vectors;
    HYENAREC_SOME_AT_ONCE for (int distance = 1; distance <= shape.near_pairs && distance <= reach; ++distance) {
      warp.lanes([&](int lane) { at[lane] += side; });
      products([&](int lane) { return distance <= most[lane]; });
      warp.lanes([&](int lane) { table[lane] += next_table; });
    }
    HYENAREC_ONE_BY_ONE for (int number = shape.near_pairs; number < shape.distances(); ++number) {
      const int distance = shape.distance(number);
      if (distance > reach) break;
      warp.lanes([&](int lane) {
        at[lane] = from[lane] + int64_t(distance) * side, table[lane] = tables_of + lane + number * next_table;
      });
      products([&](int lane) {
        int later = reversed ? index[lane] + distance : index[lane];
        return later < tiles[lane] && shape.meet(later, distance);
      });
    }
    warp.sync();
    warp.lanes([&](int lane) {
      each_rank(lane, [&](int tile, int rank, int step, int v) { nu.at(tile, rank, of_tile) = c[step][lane].value[v]; });
    });
    warp.sync();
  }

 private:
  // Calls f(tile, rank, index of a step, index of a value) for what a lane has of a product.
  template <class F>
  HYENAREC_DEVICE void each_rank(int lane, const F& f) const {
    each<kMostSteps>([&](auto s) {
      each<4>([&](auto v) {
        int tile = lane % 4 * 2 + v.value % 2, rank = s.value * 16 + lane / 4 + v.value / 2 * 8;
        if (tile < kRoundTiles && s.value < steps) f(tile, rank, s.value, v.value);
      });
    });
  }
};

}  // namespace hyenarec::cuda
