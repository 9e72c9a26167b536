// The first pass: moments of every tile, mu = Q^T (alpha u), a product that all channels share.
//
// The window exp(-a lag) between two tiles falls apart: alpha = exp(-a (256 - t)) on the way in, exp(-a t) on the way
// out, the rest is in the tables between tiles. Transposed, the two change places.
#pragma once
#include "block_tile.h"

namespace hyenarec::cuda {

// Planes in which Q lies for the moments of rows of P planes. In the gradient of a fast decay only the last rows of a tile
// and the first of the next count, where lags, which it is weighed by, are least: what moments give of it is left over
// when larger terms cancel. With Q in bfloat16 2e-3 to 3e-2 of the whole gradient were wrong at a rate of .4 and more an
// event (600 to 1,024 taps, 8 to 32 terms). Moments for gradients take Q in two planes, which left 2e-4 to 3e-3.
template <int P>
constexpr int kBasisPlanes = P == 1 ? 2 : P;

// Local polynomials Q (256, rank), as left operands of products: lane by lane, plane by plane. Ranks are in steps of 16.
struct Basis {
  const uint32_t *in, *out;  // of Q^T (rank, 256): [16 rows][rank / 16]; of Q: likewise; then [plane][lane][4]
  int rank, steps;           // steps: of 16 ranks

  // The first P of the kStored planes that there are.
  template <int P, int kStored>
  HYENAREC_DEVICE Diagonals<P> operand(const Warp& warp, const uint32_t* words, int block, int step) const {
    Diagonals<P> a;
    warp.lanes([&](int lane) {
      each<P>([&](auto p) {
        const uint32_t* from = words + ((int64_t(block * steps + step) * kStored + p.value) * 32 + lane) * 4;
        Aligned<4> four = *reinterpret_cast<const Aligned<4>*>(from);
        each<4>([&](auto w) { a.plane[p.value][lane].word[w.value] = four.word[w.value]; });
      });
    });
    return a;
  }
};

// Channels [first, first + count) of a call, which has `total`.
struct Channels {
  int first, count, total, groups;
  HYENAREC_DEVICE int group(int c) const { return (first + c) / (total / groups); }
};

constexpr int kMostRank = 32;

struct MomentsInput {
  Product source;
  bool reversed;   // scaled as the transposed operator's input
  float* moments;  // (slots, rank, channels)
};

// kFine: the planes of Q that are used.
template <class T, int kFine>
struct TileMoments {
  using S = WideTile<T>;
  static constexpr int kThreads = S::kThreads, kBlocks = 3;
  // An odd number of 16 bytes, so that rows of adjacent channels are in different banks.
  static constexpr int kChannelBytes = S::kInput + S::kSkewed;
  static constexpr int kStride = kChannelBytes + (kChannelBytes / 16 % 2 ? 0 : 16);
  static_assert(kStride / 16 % 2 == 1);
  static constexpr int kParts = S::kWarps / S::kColumns;  // of the tile's rows, a warp each
  static constexpr int kSums = kParts * kMostRank * S::kChannels;
  static constexpr int kSharedBytes = S::kChannels * kStride + kSums * int(sizeof(float));

  Nodes tiles;
  Channels channels;
  int groups, inputs;  // groups of kChannels
  Basis basis;
  const float* rates;  // (channels,) or null
  MomentsInput input[2];

  int64_t grid() const { return int64_t(tiles.count) * groups * inputs; }

  template <class Block>
  HYENAREC_DEVICE void operator()(Block& block, int64_t index, void* memory) const {
    const MomentsInput& from = input[index / groups % inputs];
    Slot slot = tiles.slots[index / groups / inputs];
    if (!Nodes::exists(slot, kTile)) return;
    auto* shared = static_cast<char*>(memory);
    auto* sums = reinterpret_cast<float*>(shared + S::kChannels * kStride);
    int channel = int(index % groups) * S::kChannels;
    block.phase([&](int thread) {
      Piece piece(thread);
      float u[4][S::kVector];
      int at = channel + piece.column * S::kVector;
      read_piece<T>(u, from.source, TileRows(slot, 0), piece, tiles.per_sequence ? slot.sequence : 0, at,
                    channels.count);
      if (rates) scale(u, piece.first, at, from.reversed);
      store_piece<S>(u, shared, kStride, piece);
    });
    block.warps([&](const Warp& warp) {
      int column = warp.number % S::kColumns, part = warp.number / S::kColumns;
      PerLane<Accumulator> c[kMostRank / 16]{};
      HYENAREC_ONE_BY_ONE
      for (int rows = part * (16 / kParts); rows < (part + 1) * (16 / kParts); ++rows) {
        PerLane<Words<2>> b[S::kPlanes];
        each<S::kPlanes>([&](auto p) {
          auto words = load_matrices<false>(warp, [&](int lane) {
            char* row = S::at(shared, kStride, column * 8 + lane % 8);
            return row + (p.value * S::kPlane + 16) + lane / 8 % 2 * S::kHalf + rows * 16;
          });
          warp.lanes([&](int lane) { b[p.value][lane] = {{words[lane].word[0], words[lane].word[1]}}; });
        });
        each<kMostRank / 16>([&](auto step) {
          if (step.value >= basis.steps) return;
          auto a = basis.operand<kFine, kBasisPlanes<S::kPlanes>>(warp, basis.in, rows, step.value);
          each<kFine>([&](auto p) {
            each<(S::kPlanes < kFine - p.value ? S::kPlanes : kFine - p.value)>([&](auto q) {
              TensorCore<Bfloat16>::multiply(c[step.value], a.plane[p.value], b[q.value]);
            });
          });
        });
      }
      warp.lanes([&](int lane) {
        each<kMostRank / 16>([&](auto step) {
          each<4>([&](auto v) {
            int rank = step.value * 16 + lane / 4 + v.value / 2 * 8, at = column * 8 + lane % 4 * 2 + v.value % 2;
            sums[(part * kMostRank + rank) * S::kChannels + at] = c[step.value][lane].value[v.value];
          });
        });
      });
    });
    block.phase([&](int thread) {
      for (int i = thread; i < basis.rank * S::kChannels; i += kThreads) {
        int rank = i / S::kChannels, c = channel + i % S::kChannels;
        if (c >= channels.count) continue;
        float sum = 0.f;
        each<kParts>([&](auto part) { sum += sums[part.value * kMostRank * S::kChannels + i]; });
        from.moments[(int64_t(index / groups / inputs) * basis.rank + rank) * channels.count + c] = sum;
      }
    });
  }

 private:
  HYENAREC_DEVICE void scale(float (&u)[4][S::kVector], int first, int channel, bool reversed) const {
    each<S::kVector>([&](auto v) {
      if (channel + v.value >= channels.count) return;
      float rate = rates[channel + v.value], step = expf(-rate);
      // From the row with the largest exponent on, so that no factor is infinite.
      float factor = expf(-rate * (reversed ? first : kTile - first - 3));
      each<4>([&](auto r) {
        u[r.value][v.value] *= reversed ? factor : 1.f;
        u[3 - r.value][v.value] *= reversed ? 1.f : factor;
        factor *= step;
      });
    });
  }
};

}  // namespace hyenarec::cuda
