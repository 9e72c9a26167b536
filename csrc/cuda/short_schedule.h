// What a call of short_conv.h launches; the same for the device and for tests on the host. `Machine` has start(program,
// grid), as in schedule.h.
#pragma once
#include "conv_step.h"
#include "fir_backward.h"

namespace hyenarec::cuda {

// Whether packs of kCount values lie at multiples of their size in every tensor; tensors that are absent count as
// aligned.
template <class T, int kCount>
bool aligned(const Rows& rows) {
  return reinterpret_cast<uintptr_t>(rows.data) % (kCount * sizeof(T)) == 0 && rows.batch_stride % kCount == 0 &&
         rows.row_stride % kCount == 0;
}
template <class T, int kCount, class... More>
bool aligned(int64_t channels, const More&... rows) {
  return channels % kCount == 0 && (aligned<T, kCount>(rows) && ...);
}

inline Fir fir_of(const ShortConvArgs& args) {
  return {{args.packed, args.wide_index, int(args.rows), args.starts, args.ends},
          int(args.sequences),
          int(args.channels / args.parts),
          int(args.parts),
          int(args.width),
          args.silu,
          false,
          args.x,
          args.weight,
          args.bias};
}

// Calls f(Float32{}), f(Bfloat16{}) or f(Float16{}), on the host.
template <class F>
void with_type(Dtype dtype, const F& f) {
  if (dtype == Dtype::bf16) return f(Bfloat16{});
  if (dtype == Dtype::f16) return f(Float16{});
  f(Float32{});
}

// Calls f(Float32{}, Index<4>{}) or alike: with the type, and the most taps of the smallest program that takes the
// call.
template <class F>
void with_program(const ShortConvArgs& args, const F& f) {
  with_type(args.dtype, [&](auto type) { args.width <= 4 ? f(type, Index<4>{}) : f(type, Index<kMostTaps>{}); });
}

template <class Machine>
void start_short_conv(const ShortConvArgs& args, Machine& machine) {
  with_program(args, [&](auto type, auto width) {
    ShortConv<decltype(type), decltype(width)::value> program{fir_of(args), args.out, args.rest};
    program.a.aligned =
        aligned<decltype(type), program.kCount>(program.a.channels, args.x, args.out, args.rest);
    machine.start(program, program.grid());
  });
}

template <class Machine>
void start_short_conv_backward(const ShortConvArgs& args, Machine& machine) {
  with_program(args, [&](auto type, auto width) {
    bool summed = args.dweight.data || args.dbias.data;
    ShortConvBackward<decltype(type), decltype(width)::value> program{
        fir_of(args), args.grad, args.grad_rest, args.dx, 0, summed ? static_cast<float*>(args.workspace) : nullptr};
    program.a.aligned = aligned<decltype(type), program.kCount>(program.a.channels, args.x, args.grad, args.grad_rest,
                                                                args.dx);
    program.shares = program.shares_of(program.a, program.groups());
    machine.start(program, program.grid());
    if (!summed) return;
    ShortConvSums sums{program.sums, program.shares, args.channels, int(args.width), args.dweight, args.dbias};
    machine.start(sums, sums.grid());
  });
}

inline int64_t short_conv_sums(const ShortConvArgs& args) {  // bytes
  int64_t count = 0;
  with_program(args, [&](auto type, auto width) {
    ShortConvBackward<decltype(type), decltype(width)::value> program{fir_of(args)};
    count = program.shares_of(program.a, program.groups()) * (args.width + 1) * args.channels;
  });
  return count * int64_t(sizeof(float));
}

template <class Machine>
void start_conv_step(const ConvStepArgs& args, Machine& machine) {
  with_type(args.dtype, [&](auto type) {
    using Program = ConvStep<decltype(type)>;
    Rows taps{const_cast<float*>(args.taps), 0, args.channels};
    Program program{int(args.channels), args.sequences, args.slots,
                    aligned<Float32, Program::kCount>(args.channels, args.history, taps),
                    args.x, args.pre_gate, args.post_gate, args.out, args.history, args.taps, args.steps};
    machine.start(program, program.grid());
  });
}

// Null, or why the kernels do not take a call.
inline const char* refuse(const ShortConvArgs& args) {
  constexpr int64_t kMost = 1 << 30;  // positions are added in 32 bits; offsets in memory have 64
  if (args.dtype == Dtype::f64) return "x: expected float32, bfloat16 or float16";
  if (args.rows >= kMost || args.sequences >= kMost || args.channels >= kMost) return "x: 2^30 rows, sequences or channels";
  if (args.width < 1 || args.width > kMostTaps) return "weight: expected 1 to 8 taps";
  if (args.parts < 1 || args.channels % args.parts) return "dim: no divisor of the channels";
  return nullptr;
}
inline const char* refuse(const ConvStepArgs& args) {
  if (args.dtype == Dtype::f64) return "x: expected float32, bfloat16 or float16";
  return args.channels >= int64_t(1) << 30 ? "x: 2^30 channels" : nullptr;
}

}  // namespace hyenarec::cuda
