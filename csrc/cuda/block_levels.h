// Levels above the tiles: moments go up to nodes of 4 or 8 children; nodes meet earlier nodes at each level; results
// come down.
//
//     mu above = sum_j w_j S_j^T mu_j              up: from a node's children j
//     nu = sum_k M^(k) mu[-k] + w S_j nu above     across: from the earlier nodes under one parent, and the parent's nu
//
// Transposed, across looks at later nodes and transposes M. Tiles meet in the pass over rows (block_between.h). The
// arrays (slots, rank, channels) of floats are small, a thousandth of the rows, so tensor cores are not used. A lane
// has one channel, so that tables are read in whole lines, and several ranks and slots, so that a table's entry serves
// several slots and a moment several ranks.
#pragma once
#include "block_moments.h"
#include "legendre_blocks.h"

namespace hyenarec::cuda {

struct LevelShape : BlockLevel {
  HYENAREC_DEVICE int distances() const { return near_pairs + far_pairs; }
  HYENAREC_DEVICE int distance(int number) const {  // of table `number`: near ones from 1 on, then far ones
    return number < near_pairs ? number + 1 : far_first + number - near_pairs;
  }
  // Whether node `later` and the one `distance` before it meet at this level: under one parent, or where the filter's
  // end keeps their parents from meeting.
  HYENAREC_DEVICE bool meet(int later, int distance) const {
    int place = fan ? later % fan : later;
    bool near = distance <= near_pairs && distance <= place;
    return near || (distance >= far_first + place && distance < far_first + far_pairs && distance <= later);
  }
};

// Thread blocks of 8 warps. A warp has the ranks whose remainder by 8 is its number, a lane one of 32 channels.
struct LevelBlock {
  static constexpr int kThreads = 256, kWarps = 8, kChannels = 32, kRanks = kMostRank / kWarps;
  int channel, warp;  // the channel in the call's range
  HYENAREC_DEVICE LevelBlock(int thread, int tile)
      : channel(tile * kChannels + thread % 32), warp(thread / 32) {}
};

struct MomentsUp {
  static constexpr int kThreads = LevelBlock::kThreads, kSharedBytes = 0, kBlocks = 2, kSlots = 4;
  Nodes nodes, children;
  LevelShape shape, below;
  Channels channels;
  bool reversed;
  const float* transfer;  // (fan, rank below, rank)
  const float* rates;
  const float* in;
  float* out;

  HYENAREC_DEVICE int tiles() const { return int(ceil_div(channels.count, LevelBlock::kChannels)); }
  HYENAREC_DEVICE int64_t grid() const { return ceil_div(nodes.count, kSlots) * tiles(); }

  template <class Block>
  HYENAREC_DEVICE void operator()(Block& block, int index, void*) const {
    block.phase([&](int thread) {
      LevelBlock mine(thread, index % tiles());
      int64_t first = int64_t(index / tiles()) * kSlots;
      if (mine.channel >= channels.count) return;
      float rate = rates ? rates[mine.channel] * below.chunk : 0.f;
      float sums[LevelBlock::kRanks][kSlots] = {};
      Slot slots[kSlots];
      each<kSlots>([&](auto i) {
        slots[i.value] = first + i.value < nodes.count ? nodes.slots[first + i.value] : Slot{0, 0, 0, 0};
      });
      for (int j = 0; j < below.fan; ++j) {
        float factor = rates ? expf(-rate * (reversed ? j : below.fan - 1 - j)) : 1.f;
        for (int s = 0; s < below.rank; ++s) {
          float value[kSlots];
          each<kSlots>([&](auto i) {
            const Slot& slot = slots[i.value];
            int child = slot.index * below.fan + j;
            bool real = int64_t(child) * below.chunk < slot.length;
            int64_t at = (int64_t(children.first(slot)) + child) * below.rank + s;
            value[i.value] = real ? factor * in[at * channels.count + mine.channel] : 0.f;
          });
          each<LevelBlock::kRanks>([&](auto r) {
            int rank = mine.warp + r.value * LevelBlock::kWarps;
            if (rank >= shape.rank) return;
            float weight = transfer[(j * below.rank + s) * shape.rank + rank];
            each<kSlots>([&](auto i) { sums[r.value][i.value] += weight * value[i.value]; });
          });
        }
      }
      each<kSlots>([&](auto i) {
        if (!Nodes::exists(slots[i.value], shape.chunk)) return;
        each<LevelBlock::kRanks>([&](auto r) {
          int rank = mine.warp + r.value * LevelBlock::kWarps;
          if (rank < shape.rank)
            out[((first + i.value) * shape.rank + rank) * channels.count + mine.channel] = sums[r.value][i.value];
        });
      });
    });
  }
};

struct MomentsAcross {
  static constexpr int kThreads = LevelBlock::kThreads, kSharedBytes = 0, kBlocks = 2, kSlots = 8;
  Nodes nodes, parents;
  LevelShape shape;
  int rank_above;
  Channels channels;
  bool reversed;
  const float* tables;    // (distances, rank, rank, groups)
  const float* transfer;  // (fan, rank, rank above); where there is a level above
  const float* rates;
  const float* in;
  const float* above;
  bool has_above;
  float* out;

  HYENAREC_DEVICE int tiles() const { return int(ceil_div(channels.count, LevelBlock::kChannels)); }
  HYENAREC_DEVICE int64_t grid() const { return ceil_div(nodes.count, kSlots) * tiles(); }

  template <class Block>
  HYENAREC_DEVICE void operator()(Block& block, int index, void*) const {
    block.phase([&](int thread) {
      LevelBlock mine(thread, index % tiles());
      int64_t first = int64_t(index / tiles()) * kSlots;
      if (mine.channel >= channels.count) return;
      float sums[LevelBlock::kRanks][kSlots] = {};
      Slot slots[kSlots];
      each<kSlots>([&](auto i) {
        slots[i.value] = first + i.value < nodes.count ? nodes.slots[first + i.value] : Slot{0, 0, 0, 0};
      });
      if (has_above) come_down(mine, slots, sums);
      meet(mine, first, slots, sums);  // last: it fills the registers, and needs less of a slot
      each<kSlots>([&](auto i) {
        if (!Nodes::exists(slots[i.value], shape.chunk)) return;
        each<LevelBlock::kRanks>([&](auto r) {
          int rank = mine.warp + r.value * LevelBlock::kWarps;
          if (rank < shape.rank)
            out[((first + i.value) * shape.rank + rank) * channels.count + mine.channel] = sums[r.value][i.value];
        });
      });
    });
  }

 private:
  using Sums = float[LevelBlock::kRanks][kSlots];

  HYENAREC_DEVICE void meet(const LevelBlock& mine, int64_t first, const Slot (&slots)[kSlots], Sums& sums) const {
    int group = channels.group(mine.channel);
    for (int number = 0; number < shape.distances(); ++number) {
      int distance = shape.distance(number);
      unsigned meets = 0;
      each<kSlots>([&](auto i) {
        const Slot& slot = slots[i.value];
        int later = reversed ? slot.index + distance : slot.index;
        bool real = int64_t(later) * shape.chunk < slot.length && shape.meet(later, distance);
        meets |= unsigned(real) << i.value;
      });
      if (!meets) continue;
      // Pointers advance from one moment to the next: offsets of every slot and rank would not fit into registers.
      const int64_t slot_step = int64_t(shape.rank) * channels.count;
      const int64_t rank_step = int64_t(reversed ? 1 : shape.rank) * channels.groups;
      const float* table = tables + int64_t(number) * shape.rank * shape.rank * channels.groups + group +
                           mine.warp * rank_step;
      const float* from = in + (first + (reversed ? distance : -distance)) * slot_step + mine.channel;
      for (int s = 0; s < shape.rank; ++s) {
        float value[kSlots];
        const float* at = from;
        each<kSlots>([&](auto i) {
          value[i.value] = meets >> i.value & 1 ? *at : 0.f;
          at += slot_step;
        });
        each<LevelBlock::kRanks>([&](auto r) {
          if (mine.warp + r.value * LevelBlock::kWarps >= shape.rank) return;
          float weight = table[r.value * LevelBlock::kWarps * rank_step];
          each<kSlots>([&](auto i) { sums[r.value][i.value] += weight * value[i.value]; });
        });
        from += channels.count;
        table += int64_t(reversed ? shape.rank : 1) * channels.groups;
      }
    }
  }

  HYENAREC_DEVICE void come_down(const LevelBlock& mine, const Slot (&slots)[kSlots], Sums& sums) const {
    float rate = rates ? rates[mine.channel] * shape.chunk : 0.f;
    each<kSlots>([&](auto i) {
      const Slot& slot = slots[i.value];
      if (!Nodes::exists(slot, shape.chunk)) return;
      int place = slot.index % shape.fan;
      int64_t parent = parents.first(slot) + slot.index / shape.fan;
      float factor = rates ? expf(-rate * (reversed ? shape.fan - 1 - place : place)) : 1.f;
      HYENAREC_ONE_BY_ONE
      for (int s = 0; s < rank_above; ++s) {
        float value = factor * above[(parent * rank_above + s) * channels.count + mine.channel];
        each<LevelBlock::kRanks>([&](auto r) {
          int rank = mine.warp + r.value * LevelBlock::kWarps;
          if (rank < shape.rank)
            sums[r.value][i.value] += transfer[(place * shape.rank + rank) * rank_above + s] * value;
        });
      }
    });
  }
};

// The gradient of a level's tables, the sum over pairs of nodes of the outer product of eta and mu. A thread block has
// a distance, 8 x 8 entries of its table, and a share of the slots, divided among its warps.
struct TablesGradient {
  static constexpr int kThreads = LevelBlock::kThreads, kWarps = LevelBlock::kWarps, kBlocks = 2, kEach = 8;
  static constexpr int kSharedBytes = kThreads * kEach * kEach * int(sizeof(float));
  Nodes nodes;
  LevelShape shape;
  Channels channels;
  int shares;
  const float *mu, *eta;  // eta: the moments of the output's gradient
  float* out;             // (shares, distances, rank, rank, channels)

  HYENAREC_DEVICE int tiles() const { return int(ceil_div(channels.count, LevelBlock::kChannels)); }
  HYENAREC_DEVICE int parts() const { return int(ceil_div(shape.rank, kEach)); }
  HYENAREC_DEVICE int64_t grid() const { return int64_t(shares) * shape.distances() * parts() * parts() * tiles(); }

  template <class Block>
  HYENAREC_DEVICE void operator()(Block& block, int index, void* memory) const {
    auto* sums_of_warps = static_cast<float*>(memory);  // [warp][entry][lane]
    const int tile = index % tiles(), part = index / tiles() % (parts() * parts());
    const int rest = index / tiles() / (parts() * parts());
    const int row = part / parts() * kEach, column = part % parts() * kEach;
    const int number = rest % shape.distances(), share = rest / shape.distances();
    block.phase([&](int thread) {
      LevelBlock mine(thread, tile);
      const int distance = shape.distance(number);
      float sums[kEach][kEach] = {};
      int64_t first = mine.channel < channels.count ? int64_t(share) * kWarps + mine.warp : nodes.count;
      for (int64_t i = first; i < nodes.count; i += int64_t(shares) * kWarps) {
        Slot slot = nodes.slots[i];
        if (!Nodes::exists(slot, shape.chunk) || !shape.meet(slot.index, distance)) continue;
        float left[kEach], right[kEach];
        read(left, eta, i, row, mine.channel);
        read(right, mu, i - distance, column, mine.channel);
        each<kEach>([&](auto r) {
          each<kEach>([&](auto s) { sums[r.value][s.value] += left[r.value] * right[s.value]; });
        });
      }
      float* to = sums_of_warps + mine.warp * kEach * kEach * 32 + thread % 32;
      each<kEach>([&](auto r) {
        each<kEach>([&](auto s) { to[(r.value * kEach + s.value) * 32] = sums[r.value][s.value]; });
      });
    });
    block.phase([&](int thread) {
      static_assert(kEach == kWarps, "a warp sums one column of the entries");
      LevelBlock mine(thread, tile);
      const int s = column + mine.warp;
      if (s >= shape.rank || mine.channel >= channels.count) return;
      const float* from = sums_of_warps + mine.warp * 32 + thread % 32;
      int64_t first = (int64_t(share) * shape.distances() + number) * shape.rank + row;
      float* to = out + (first * shape.rank + s) * channels.count + mine.channel;
      HYENAREC_ONE_BY_ONE for (int r = row; r < row + kEach && r < shape.rank; ++r) {
        float sum = 0.f;
        each<kWarps>([&](auto warp) { sum += from[warp.value * kEach * kEach * 32]; });
        *to = sum;
        from += kEach * 32, to += int64_t(shape.rank) * channels.count;
      }
    });
  }

 private:
  HYENAREC_DEVICE void read(float (&values)[kEach], const float* moments, int64_t slot, int rank, int channel) const {
    const float* at = moments + (slot * shape.rank + rank) * channels.count + channel;
    each<kEach>([&](auto r) {
      values[r.value] = rank + r.value < shape.rank ? *at : 0.f;
      at += channels.count;
    });
  }
};

}  // namespace hyenarec::cuda
