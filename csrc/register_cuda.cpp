// Reads tensors on a CUDA device into plain structs, allocates outputs and workspace, finds torch's current stream, and
// registers the ops of namespace hyenarec_cuda. Built only where nvcc compiled the kernels; torch may be without CUDA.
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include "cuda/long_conv.h"
#include "tensors.h"

namespace {

using hyenarec::Dtype;
using hyenarec::dtype_of;
using hyenarec::empty;
using hyenarec::LongConvArgs;
using hyenarec::MaybeTensor;
using hyenarec::rows_of;
using hyenarec::ScalarType;
using hyenarec::sizes_of;
using hyenarec::Tensor;
using hyenarec::unit_stride;

// Looked up, not linked: a torch without CUDA has no such library, and the stable ABI no such function before 2.13.
void* current_stream(int32_t device) {
  using StreamOf = AOTITorchError (*)(int32_t, void**);
  static const auto stream_of = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    return library ? reinterpret_cast<StreamOf>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  STD_TORCH_CHECK(stream_of, "long_conv: this torch has no CUDA");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(stream_of(device, &stream));
  return stream;
}

// Tensors that kernels read or write, kept until the launches are queued, and the arguments that point into them.
struct Inputs {
  Tensor x;
  MaybeTensor pre_gate, post_gate;
  LongConvArgs args{};

  Inputs(const Tensor& x_, const Tensor& filter, const MaybeTensor& skip, const MaybeTensor& pre,
         const MaybeTensor& post, const MaybeTensor& starts, const MaybeTensor& ends, int64_t max_length)
      : x(unit_stride(x_)), pre_gate(unit_stride(pre)), post_gate(unit_stride(post)) {
    args.packed = x.dim() == 2;
    STD_TORCH_CHECK(args.packed || x.dim() == 3, "long_conv: x: expected (B, L, D) or (T, D)");
    STD_TORCH_CHECK(!args.packed || (starts && ends), "long_conv: packed x needs starts and ends");
    args.dtype = dtype_of(x);
    STD_TORCH_CHECK(args.dtype != Dtype::f64, "long_conv: x: float64 is not served");
    args.sequences = args.packed ? starts->size(0) : x.size(0);
    args.rows = x.size(x.dim() - 2);
    args.channels = x.size(x.dim() - 1);
    args.max_length = max_length;
    args.starts = index(starts);
    args.ends = index(ends);
    args.wide_index = ends && ends->scalar_type() == ScalarType::Long;
    STD_TORCH_CHECK(!starts || (ends && starts->scalar_type() == ends->scalar_type()),
                    "long_conv: starts: expected beside ends, of its type");
    args.x = rows_of(x);
    args.pre_gate = like_x(pre_gate, "pre_gate");
    args.post_gate = like_x(post_gate, "post_gate");
    STD_TORCH_CHECK(filter.dim() == 2 && filter.size(0) > 0 && args.channels % filter.size(0) == 0,
                    "long_conv: filter: expected (G, K) with G a divisor of ", args.channels);
    args.groups = filter.size(0);
    args.taps = filter.size(1);
    args.filter = values(filter, args.groups * args.taps, "filter");
    args.skip = skip ? values(*skip, args.channels, "skip") : nullptr;
  }

  int32_t device() const { return x.get_device_index(); }

  hyenarec::Rows like_x(const MaybeTensor& t, const char* name) const {
    STD_TORCH_CHECK(!t || (t->device() == x.device() && t->scalar_type() == x.scalar_type() &&
                           sizes_of(*t) == sizes_of(x)),
                    "long_conv: ", name, ": expected the shape, type and device of x");
    return rows_of(t);
  }

 private:
  const void* index(const MaybeTensor& t) const {
    STD_TORCH_CHECK(!t || (t->device() == x.device() && t->is_contiguous() && t->numel() == args.sequences &&
                           (t->scalar_type() == ScalarType::Long || t->scalar_type() == ScalarType::Int)),
                    "long_conv: starts, ends: expected ", args.sequences, " contiguous int32 or int64 on x's device");
    return t ? t->data_ptr() : nullptr;
  }

  float* values(const Tensor& t, int64_t count, const char* name) const {
    STD_TORCH_CHECK(t.device() == x.device() && t.scalar_type() == ScalarType::Float && t.is_contiguous() &&
                        t.numel() == count,
                    "long_conv: ", name, ": expected ", count, " contiguous float32 on x's device");
    return static_cast<float*>(t.data_ptr());
  }
};

void run(LongConvArgs& args, const Tensor& x, bool backward) {
  Tensor workspace = empty(x, {hyenarec::long_conv_workspace(args, backward)}, ScalarType::Byte);
  args.workspace = workspace.data_ptr();
  void* stream = current_stream(x.get_device_index());
  const char* failure = (backward ? hyenarec::long_conv_backward : hyenarec::long_conv_forward)(args, stream);
  STD_TORCH_CHECK(failure == nullptr, "long_conv: ", failure);
}

Tensor long_conv(const Tensor& x, const Tensor& filter, const MaybeTensor& skip, const MaybeTensor& pre_gate,
                 const MaybeTensor& post_gate, const MaybeTensor& starts, const MaybeTensor& ends,
                 int64_t max_length) {
  Inputs in(x, filter, skip, pre_gate, post_gate, starts, ends, max_length);
  torch::stable::accelerator::DeviceGuard guard(in.device());
  Tensor out = empty(x, sizes_of(x), x.scalar_type());
  in.args.out = rows_of(out);
  run(in.args, x, false);
  return out;
}

// Gradients of x, filter, skip, pre_gate and post_gate; empty where not needed.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> long_conv_backward(
    const Tensor& grad_, const Tensor& x, const Tensor& filter, const MaybeTensor& skip, const MaybeTensor& pre_gate,
    const MaybeTensor& post_gate, const MaybeTensor& starts, const MaybeTensor& ends, int64_t max_length,
    std::vector<bool> needs) {
  STD_TORCH_CHECK(needs.size() == 5, "long_conv_backward: needs: expected 5 flags");
  Inputs in(x, filter, skip, pre_gate, post_gate, starts, ends, max_length);
  torch::stable::accelerator::DeviceGuard guard(in.device());
  MaybeTensor grad = unit_stride(grad_);
  in.args.grad = in.like_x(grad, "grad");
  auto like = [&](bool needed, const Tensor& t, ScalarType type) {
    return empty(x, needed ? sizes_of(t) : std::vector<int64_t>{0}, type);
  };
  Tensor dx = like(needs[0], x, x.scalar_type()), dfilter = like(needs[1], filter, ScalarType::Float);
  Tensor dskip = like(needs[2] && skip, skip ? *skip : x, ScalarType::Float);
  Tensor dpre = like(needs[3] && pre_gate, x, x.scalar_type());
  Tensor dpost = like(needs[4] && post_gate, x, x.scalar_type());
  in.args.dx = rows_of(dx);
  in.args.dpre_gate = rows_of(dpre);
  in.args.dpost_gate = rows_of(dpost);
  in.args.dfilter = needs[1] ? static_cast<float*>(dfilter.data_ptr()) : nullptr;
  in.args.dskip = needs[2] && skip ? static_cast<float*>(dskip.data_ptr()) : nullptr;
  run(in.args, x, true);
  return {dx, dfilter, dskip, dpre, dpost};
}

// Empty where the current device can run the kernels, otherwise why not.
std::string unsupported() {
  const char* reason = hyenarec::long_conv_unsupported();
  return reason ? reason : "";
}

}  // namespace

STABLE_TORCH_LIBRARY(hyenarec_cuda, m) {
  m.def(
      "long_conv(Tensor x, Tensor filter, Tensor? skip, Tensor? pre_gate, Tensor? post_gate, Tensor? starts, "
      "Tensor? ends, int max_length) -> Tensor");
  m.def(
      "long_conv_backward(Tensor grad, Tensor x, Tensor filter, Tensor? skip, Tensor? pre_gate, Tensor? post_gate, "
      "Tensor? starts, Tensor? ends, int max_length, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("unsupported() -> str");
}
STABLE_TORCH_LIBRARY_IMPL(hyenarec_cuda, CUDA, m) {
  m.impl("long_conv", TORCH_BOX(&long_conv));
  m.impl("long_conv_backward", TORCH_BOX(&long_conv_backward));
}
STABLE_TORCH_LIBRARY_IMPL(hyenarec_cuda, CompositeExplicitAutograd, m) {
  m.impl("unsupported", TORCH_BOX(&unsupported));
}
