// What a run (block_runs.h) of a call of legendre_blocks.h launches, in which order, and where its workspace lies; the
// same for the device and for tests on the host. `Machine` has start(program, grid).
//
//     forward    [borders of packed sequences,] prepare, [moments of tiles, up and across for each level above,] tiles
//     backward   likewise with the moments of u and dy, both ways, the gradients of tables, and the sums
//
// Estimates, not measured: picoseconds per element of bfloat16, with 4,096 taps, 16 terms, both gates and no window.
// `python -m benchmarks model` counts them in the code compiled for sm_90: each launch takes as long as its busiest
// unit, at full rate ("at least") or at the share of it that good kernels reach ("likely"). A copy takes 2.67 ps.
//
//                                            at least    likely
//     forward, one pass                      2.8         3.8     by the load-store unit
//     forward and backward                   11.8        15.8
//         moments of u and dy                2.8         3.1     by memory
//         gradients of tables                0.4         0.7     by instructions
//         tiles backward                     5.6         8.0     by the load-store unit and by instructions
//
// The least is 8 bytes per element forward and 14 backward, 7.3 ps. A backward call reads its inputs twice: 22 bytes.
// So does a forward call with several levels, or with too few rounds per block (block_forward.h): 12 bytes, 1.5 ps
// more.
#pragma once
#include "block_backward.h"
#include "block_forward.h"
#include "block_parameters.h"
#include "schedule.h"

namespace hyenarec::cuda {

// One run: `count` of the call's channels from `first` on, and all of the sequences in `args`.
template <class T, class Machine>
class BlockRun {
 public:
  // `shared`: bytes of shared memory that a block can have.
  BlockRun(const LegendreBlocksArgs& args, Channels channels, bool add, bool add_skip, int shared, int blocks,
           Machine& machine)
      : a_(args), channels_(channels), add_(add), add_skip_(add_skip), shared_(shared), blocks_(blocks),
        machine_(machine), workspace_(args.workspace) {
    while (levels_ < a_.num_levels && a_.levels[levels_].chunk < a_.max_length) ++levels_;
    for (int i = 0; i < levels_; ++i) static_cast<BlockLevel&>(shapes_[i]) = a_.levels[i];
    edge_first_ = int(std::max<int64_t>(a_.horizon / kTile, 1));
    int64_t uncovered = int64_t(edge_first_ - 1) * kTile + 1;  // the first lag that no level covers from every row
    bool reached = ceil_div(a_.max_length, kTile) > edge_first_ && a_.horizon > uncovered;
    // At the next distance, lags begin one tile later.
    edges_ = !reached ? 0 : a_.horizon > uncovered + kTile ? 2 : 1;
    locate();
  }

  int64_t workspace() const { return workspace_.peak(); }

  void forward() {
    prepare();
    Product source{a_.x, a_.pre_gate};
    TilesBetween<T> between{};
    if (levels_ == 1 && with_edges([&](auto edges) { return forward_in_order<edges.value>(source); })) return;
    if (levels_) {
      Moments mu = moments(levels_ > 1);
      MomentWords<T> words = moment_words(nodes_[0].count);
      tile_moments<1>({{source, false, mu[0], words}}, 1);
      up(mu, false);
      between = tiles_between(words, across(mu, false), false);
    }
    with_edges([&](auto edges) {
      ConvolveTiles<T, edges.value> program{convolution<edges.value>(), source, {{a_.out, a_.post_gate}, {}},
                                             between, 0, 0};
      start(program, program.with.pass);
    });
    zero_rest({a_.out, {}, {}});
  }

  // Launches the one pass that also computes moments. Returns false instead unless every share has at least as many
  // rounds as a tile meets.
  template <bool kEdges>
  bool forward_in_order(const Product& source) {
    ConvolveTiles<T, kEdges> program{convolution<kEdges>(), source, {{a_.out, a_.post_gate}, {}}, {}, 0, 0};
    TilePass<T>& pass = program.with.pass;
    divide(program, pass);
    const LevelShape& shape = shapes_[0];
    program.in_order = int(ceil_div(pass.rounds(), pass.shares));
    int64_t most = std::min<int64_t>(shape.distance(shape.distances() - 1), ceil_div(a_.max_length, kTile) - 1);
    program.before = int(ceil_div(most, kRoundTiles));
    if (program.in_order < program.before) return false;
    int64_t slots = int64_t(pass.shares) * (program.before + program.in_order) * kRoundTiles;
    program.between = tiles_between(moment_words(slots), nullptr, false);
    machine_.start(program, program.grid());
    zero_rest({a_.out, {}, {}});
    return true;
  }

  void backward() {
    prepare();
    Product u{a_.x, a_.pre_gate}, dy{a_.grad, a_.post_gate};
    bool need_filter = a_.dcoefficients || a_.ddecay, need_lags = need_filter || a_.dskip;
    bool need_input = a_.dx.data || a_.dpre_gate.data, need_post = a_.dpost_gate.data;
    float* tables = nullptr;
    TilesBetween<T> earlier{}, later{};
    if (levels_ && need_filter) tables = workspace_.take<float>(table_rows() * channels_.count);
    if (levels_) {
      bool up_and_down = levels_ > 1;
      Moments mu = moments(need_filter || (need_post && up_and_down));
      Moments eta = moments(need_filter || (need_input && up_and_down));
      MomentWords<T> mu_words{}, eta_words{};
      if (need_post) mu_words = moment_words(nodes_[0].count);
      if (need_input) eta_words = moment_words(nodes_[0].count);
      tile_moments<kFinePlanes<T>>({{u, false, mu[0], mu_words}, {dy, true, eta[0], eta_words}}, 2);
      if (mu[0]) up(mu, false);
      if (eta[0]) up(eta, true);
      if (need_filter) tables_gradient(mu, eta, tables);
      if (need_post) earlier = tiles_between(mu_words, across(mu, false), false);
      if (need_input) later = tiles_between(eta_words, across(eta, true), true);
    }
    float* near = nullptr;
    with_edges([&](auto edges) {
      ConvolveTilesBackward<T, edges.value> program{convolution<edges.value>(), u, dy, {{a_.dpost_gate, a_.grad}, {}},
                                                    {{a_.dx, a_.pre_gate}, {a_.dpre_gate, a_.x}}, earlier, later, nullptr};
      near = sums(program, program.with.pass, need_lags ? kTile : 0);
      if (need_input || need_post || need_lags) start(program, program.with.pass);
      zero_rest({a_.dx, a_.dpre_gate, a_.dpost_gate});
      if (need_lags) sum(near, program.with.pass.shares, int64_t(channels_.count) * kTile);
    });
    if (!need_lags) return;
    float* edge = nullptr;
    if (edges_ && need_filter) {
      CorrelateTiles<T> ends{pass(), edges_, edge_first_, u, dy, nullptr};
      edge = sums(ends, ends.pass, TapTables::kEdgeTaps);
      start(ends, ends.pass);
      sum(edge, ends.pass.shares, int64_t(channels_.count) * TapTables::kEdgeTaps);
    }
    parameters_gradient(near, edge, tables);
  }

 private:
  using Moments = std::vector<float*>;

  // Rows of the tables of the levels from `first` on.
  int64_t table_rows(int first = 0) const {
    int64_t rows = 0;
    for (int i = first; i < levels_; ++i) rows += int64_t(shapes_[i].distances()) * shapes_[i].rank * shapes_[i].rank;
    return rows;
  }

  TilePass<T> pass() const {
    bool aligned = true;
    for (const Rows* t : {&a_.x, &a_.pre_gate, &a_.post_gate, &a_.out, &a_.grad, &a_.dx, &a_.dpre_gate, &a_.dpost_gate})
      aligned &= (reinterpret_cast<uintptr_t>(t->data) | uint64_t(t->batch_stride) * sizeof(T) |
                  uint64_t(t->row_stride) * sizeof(T)) % sizeof(Vector) == 0;
    return {nodes_[0], channels_, int(a_.rows), TileBlock<T>::kVectors, 1, aligned};
  }
  template <bool kEdges>
  TileConvolution<T, kEdges> convolution() const {
    return {pass(), {near_, edge_, edges_, edge_first_}, basis_, rates_};
  }

  template <class F>
  auto with_edges(const F& f) const {
    return edges_ ? f(std::true_type{}) : f(std::false_type{});
  }

  // Sets the channels of a block, as many as its shared memory holds, and the shares of the rounds.
  template <class Program>
  void divide(const Program& program, TilePass<T>& pass) const {
    if (program.shared_bytes() > shared_) pass.vectors = 1;
    pass.shares = int(std::clamp<int64_t>(blocks_ / pass.groups(), 1, std::max(pass.rounds(), 1)));
  }
  template <class Program>
  void start(Program& program, TilePass<T>& pass) {
    divide(program, pass);
    machine_.start(program, program.grid());
  }
  // The program's sums (shares, channels, taps); null where `taps` is 0.
  template <class Program>
  float* sums(Program& program, TilePass<T>& pass, int taps) {
    divide(program, pass);
    return program.lags = taps ? workspace_.take<float>(int64_t(pass.shares) * channels_.count * taps) : nullptr;
  }

  void locate() {
    Sequences sequences{a_.packed, a_.wide_index, int(a_.rows), a_.starts, a_.ends};
    if (a_.packed) {
      borders_ = {workspace_.take<int>(a_.sequences), workspace_.take<int>(a_.sequences), workspace_.take<int>(1)};
      machine_.start(FindBorders{sequences, int(a_.sequences), borders_}, 1);
    }
    for (int i = 0; i < std::max(levels_, 1); ++i) {
      int chunk = i < levels_ ? shapes_[i].chunk : kTile;
      int per_sequence = a_.packed ? 0 : int(ceil_div(a_.rows, chunk));
      int count = int(a_.packed ? a_.rows / chunk + a_.sequences : per_sequence * a_.sequences);
      Slot* slots = workspace_.take<Slot>(count);
      nodes_[i] = {slots, count, chunk, per_sequence};
      locate_[i] = {sequences, borders_, int(a_.sequences), chunk, per_sequence, count, slots};
    }
  }

  void prepare() {
    int64_t rows = legendre_blocks_samples(a_);
    basis_.steps = levels_ ? int(ceil_div(shapes_[0].rank, 16)) : 0;
    basis_.rank = levels_ ? shapes_[0].rank : 0;
    const int64_t ranks = a_.num_levels ? ceil_div(a_.levels[0].rank, 16) * 16 : 0;
    const float *basis = a_.constants, *down = basis + kTile * ranks, *columns = down + kTileColumns * ranks * ranks;
    samples_ = {a_.coefficients, a_.decay, columns + kColumnRows * ranks, nullptr, nullptr,
                rows, int(a_.groups), int(a_.terms), int(a_.horizon)};
    const float* at = samples_.values + rows * a_.terms;
    if (a_.decay) samples_.aged = at, at += rows * a_.terms;
    samples_.offsets = at, at += rows;
    for (int i = 0; i + 1 < a_.num_levels; ++i) {
      transfers_[i] = at;
      at += int64_t(a_.levels[i].fan) * a_.levels[i].rank * a_.levels[i + 1].rank;
    }
    auto words = [&](int taps) {
      return workspace_.take<uint32_t>(int64_t(channels_.count) * Toeplitz<T>::table_words(taps));
    };
    near_ = words(kTile), edge_ = edges_ ? words(TapTables::kEdgeTaps) : nullptr;
    tables_ = workspace_.take<float>(table_rows(1) * a_.groups);
    bool outwards = a_.out.data || a_.dpost_gate.data, inwards = a_.dx.data || a_.dpre_gate.data;
    auto between = [&](bool needed) {
      int64_t tables = int64_t(shapes_[0].distances()) * a_.groups;
      return levels_ && needed ? workspace_.take<uint32_t>(tables * TilesBetween<T>::table_words(basis_.steps)) : nullptr;
    };
    between_[0] = between(outwards), between_[1] = between(inwards);
    rates_ = a_.decay ? workspace_.take<float>(channels_.count) : nullptr;
    auto *in = workspace_.take<uint32_t>(basis_.in_words<T>()), *down_words = workspace_.take<uint32_t>(basis_.down_words<T>());
    auto* out = workspace_.take<uint32_t>(basis_.out_words<T>());
    basis_.in = in, basis_.down = down_words, basis_.out = out;
    PrepareBlocks<T> program{samples_, channels_, a_.skip, {near_, 0, kTile}, {edge_, kTile, TapTables::kEdgeTaps},
                             kTapRows + table_rows() - table_rows(1), table_rows(1), tables_, shapes_[0],
                             {between_[0], between_[1]}, rates_, basis, down, columns, basis_, in, down_words, out,
                             std::max(levels_, 1), {}};
    std::copy(locate_, locate_ + kMostBlockLevels, program.slots);
    machine_.start(program, program.grid());
  }

  // The moments of every level, (slots, rank, channels); null where not needed.
  Moments moments(bool needed) {
    Moments held(size_t(levels_), nullptr);
    for (int i = 0; i < levels_ && needed; ++i)
      held[size_t(i)] = workspace_.take<float>(int64_t(nodes_[i].count) * shapes_[i].rank * channels_.count);
    return held;
  }
  MomentWords<T> moment_words(int64_t slots) {
    return {workspace_.take<uint32_t>(slots * channels_.count * MomentWords<T>::count(basis_.steps)), int(slots), 0};
  }
  TilesBetween<T> tiles_between(const MomentWords<T>& moments, const float* above, bool reversed) const {
    bool top = levels_ == 1;
    return {moments, between_[reversed], shapes_[0], basis_.steps, top ? Nodes{} : nodes_[1],
            top ? 0 : shapes_[1].rank, above, transfers_[0], rates_};
  }

  template <int kFine>
  void tile_moments(const std::vector<MomentsInput<T>>& inputs, int count) {
    TileMoments<T, kFine> program{pass(), count, basis_, rates_, {}};
    std::copy(inputs.begin(), inputs.end(), program.input);
    start(program, program.pass);
  }

  void up(const Moments& held, bool reversed) {
    for (int i = 1; i < levels_; ++i) {
      MomentsUp program{nodes_[i], nodes_[i - 1], shapes_[i], shapes_[i - 1], channels_, reversed, transfers_[i - 1],
                        rates_, held[i - 1], held[i]};
      machine_.start(program, program.grid());
    }
  }

  // Goes through the levels above the first. Returns the nu of the tiles' parents, or null where there are none.
  float* across(const Moments& held, bool reversed) {
    float* above = nullptr;
    int64_t row = table_rows(1);
    for (int i = levels_ - 1; i > 0; --i) {
      row -= int64_t(shapes_[i].distances()) * shapes_[i].rank * shapes_[i].rank;
      bool top = i + 1 == levels_;
      float* nu = workspace_.take<float>(int64_t(nodes_[i].count) * shapes_[i].rank * channels_.count);
      MomentsAcross program{nodes_[i], top ? Nodes{} : nodes_[i + 1], shapes_[i], top ? 0 : shapes_[i + 1].rank,
                            channels_, reversed, tables_ ? tables_ + row * a_.groups : nullptr, transfers_[i], rates_,
                            held[i], above, !top, nu};
      machine_.start(program, program.grid());
      above = nu;
    }
    return above;
  }

  void tables_gradient(const Moments& mu, const Moments& eta, float* out) {
    int64_t row = 0;
    for (int i = 0; i < levels_; ++i) {
      const LevelShape& shape = shapes_[i];
      int64_t columns = int64_t(shape.distances()) * shape.rank * shape.rank * channels_.count;
      TablesGradient program{nodes_[i], shape, channels_, 1, mu[i], eta[i], nullptr};
      int64_t blocks = std::max<int64_t>(program.grid(), 1), shares = std::min<int64_t>(kTableShares, blocks_ / blocks);
      program.shares = int(std::clamp<int64_t>(shares, 1, ceil_div(std::max(nodes_[i].count, 1), 16)));
      int64_t mark = workspace_.used();
      program.out = workspace_.take<float>(program.shares * columns);
      machine_.start(program, program.grid());
      sum(program.out, program.shares, columns, out ? out + row * channels_.count : nullptr);
      workspace_.give_back(mark);
      row += int64_t(shape.distances()) * shape.rank * shape.rank;
    }
  }

  void parameters_gradient(const float* near, const float* edge, const float* tables) {
    int64_t rows = a_.dcoefficients || a_.ddecay ? kTapRows + table_rows() : kTile;
    ParametersGradient program{samples_, channels_, rows, near, edge, tables, nullptr, nullptr, a_.dskip,
                               add_skip_};
    int64_t shares = program.shares(), terms = a_.groups * a_.terms;
    if (a_.dcoefficients) program.dcoefficients = workspace_.take<float>(shares * terms);
    if (a_.ddecay) program.ddecay = workspace_.take<float>(shares * a_.groups);
    machine_.start(program, program.grid());
    if (a_.dcoefficients) sum(program.dcoefficients, shares, terms, a_.dcoefficients, add_);
    if (a_.ddecay) sum(program.ddecay, shares, a_.groups, a_.ddecay, add_);
  }

  // out = sum over `rows` rows of in, in a fixed order; without `out`, into the first of them.
  void sum(float* in, int64_t rows, int64_t columns, float* out = nullptr, bool add = false) {
    SumRows program{in, {nullptr, nullptr, 1, int(rows)}, rows, columns, add, out ? out : in};
    machine_.start(program, program.grid());
  }

  void zero_rest(std::initializer_list<Rows> outputs) {
    if (!a_.packed) return;
    ZeroRest<T> program{borders_, int(a_.sequences), int(a_.rows), channels_.count, {}};
    std::copy(outputs.begin(), outputs.end(), program.outputs);
    machine_.start(program, ZeroRest<T>::kGrid);
  }

  static constexpr int kTableShares = 16;

  const LegendreBlocksArgs& a_;
  Channels channels_;
  bool add_, add_skip_;  // whether to add to the parameters' gradients of earlier runs
  int shared_, blocks_;
  Machine& machine_;
  Workspace workspace_;
  int levels_ = 0, edge_first_ = 1, edges_ = 0;
  LevelShape shapes_[kMostBlockLevels];
  Nodes nodes_[kMostBlockLevels];
  LocateSlots locate_[kMostBlockLevels];
  Borders borders_{};
  Samples samples_{};
  Basis basis_{};
  uint32_t *near_ = nullptr, *edge_ = nullptr;
  uint32_t* between_[2] = {};
  float *tables_ = nullptr, *rates_ = nullptr;
  const float* transfers_[kMostBlockLevels] = {};
};

}  // namespace hyenarec::cuda
