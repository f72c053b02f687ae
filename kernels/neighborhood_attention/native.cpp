// vantage::neighborhood_attention_native and its backward on the CPU, registered through torch's stable ABI.
// The schemas stand in vantage/ops/neighborhood_attention/registration.py; arguments come checked from there.
#include <cmath>
#include <optional>
#include <tuple>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#define VANTAGE_WIDTH wide
#include "general.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Ints = std::vector<int64_t>;

vantage::Shape shape_of(const Tensor& q, const Ints& kernel, const Ints& dilation, const Ints& stride,
                        const Ints& is_causal) {
  const int64_t count = q.dim() - 3;
  STD_TORCH_CHECK(count >= 1 && count <= 3 && int64_t(kernel.size()) == count && int64_t(dilation.size()) == count &&
                      int64_t(stride.size()) == count && int64_t(is_causal.size()) == count,
                  "neighborhood_attention_native: one window parameter per axis is needed");
  vantage::Shape shape;
  shape.batch = q.size(0), shape.heads = q.size(-2), shape.dim = q.size(-1);
  for (int64_t i = 0; i < count; ++i) {
    vantage::Axis& axis = shape.axes[3 - count + i];
    axis = {q.size(1 + i), kernel[i], dilation[i], stride[i], is_causal[i] != 0};
    STD_TORCH_CHECK(axis.kernel >= 1 && axis.dilation >= 1 && axis.stride >= 1 && axis.stride <= axis.kernel &&
                        axis.kernel * axis.dilation <= axis.length,
                    "neighborhood_attention_native: kernel ", axis.kernel, ", dilation ", axis.dilation, ", stride ",
                    axis.stride, " do not fit an axis of length ", axis.length);
  }
  return shape;
}

template <typename T, typename Data>
vantage::View<T> view_of(const Tensor& tensor, Data* data, bool has_dim = true) {
  vantage::View<T> view;
  const int64_t count = tensor.dim() - (has_dim ? 3 : 2);
  view.data = static_cast<T*>(data);
  view.batch = tensor.stride(0);
  for (int64_t i = 0; i < count; ++i) view.axis[3 - count + i] = tensor.stride(1 + i);
  view.head = tensor.stride(1 + count);
  return view;
}
template <typename T>
vantage::View<const T> read(const Tensor& tensor) {
  return view_of<const T>(tensor, tensor.const_data_ptr());
}
template <typename T>
vantage::View<T> write(Tensor& tensor) {
  return view_of<T>(tensor, tensor.mutable_data_ptr());
}

void check_alike(const Tensor& tensor, const Tensor& like, const char* name) {
  bool same = tensor.dim() == like.dim() && tensor.scalar_type() == like.scalar_type();
  for (int64_t i = 0; same && i < like.dim(); ++i) same = tensor.size(i) == like.size(i);
  STD_TORCH_CHECK(same, "neighborhood_attention_native: ", name, " differs from q in shape or dtype");
}
void check_lse(const Tensor& lse, const Tensor& q, const char* name) {
  bool same = lse.dim() == q.dim() - 1 && lse.scalar_type() == ScalarType::Float;
  for (int64_t i = 0; same && i < lse.dim(); ++i) same = lse.size(i) == q.size(i);
  STD_TORCH_CHECK(same, "neighborhood_attention_native: ", name, " must be float32 (B, *lengths, heads)");
}
void check_bias(const std::optional<Tensor>& bias, const vantage::Shape& shape) {
  if (bias)
    STD_TORCH_CHECK(bias->scalar_type() == ScalarType::Float && bias->is_contiguous() &&
                        bias->numel() == shape.heads * shape.table(),
                    "neighborhood_attention_native: bias must be contiguous float32 (heads, 2 * kernel - 1 per axis)");
}

// The kernels read vectors along the last dimension
Tensor with_unit_stride(const Tensor& tensor) {
  return tensor.stride(-1) == 1 || tensor.size(-1) == 1 ? tensor : torch::stable::contiguous(tensor);
}

Tensor empty_as(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType dtype) {
  return torch::stable::new_empty(like, sizes, dtype);
}
std::vector<int64_t> sizes_of(const Tensor& tensor, int64_t count) {
  std::vector<int64_t> sizes;
  for (int64_t i = 0; i < count; ++i) sizes.push_back(tensor.size(i));
  return sizes;
}

// Rows of up to eight queries, or of seven eighths of sixteen lanes
bool is_narrow(const vantage::Shape& shape) {
  const int64_t width = shape.axes[2].class_length(0), lanes = vantage::wide::lanes();
  return vantage::narrow::lanes() < lanes && vantage::round_up(width, vantage::narrow::lanes()) < vantage::round_up(width, lanes);
}

template <typename T>
void run_forward(const vantage::ForwardCall<T>& call) {
  if (!call.shape.slides())
    torch::stable::parallel_for(0, call.shape.batch * call.shape.heads, 1, [&](int64_t begin, int64_t end) {
      vantage::wide::forward_general(call, begin, end);
    });
  else if (is_narrow(call.shape)) vantage::narrow::run_forward(call);
  else vantage::wide::run_forward(call);
}

std::tuple<Tensor, Tensor> forward(const Tensor& q_in, const Tensor& k_in, const Tensor& v_in,
                                   const std::optional<Tensor>& bias, Ints kernel, Ints dilation, Ints stride,
                                   Ints is_causal, double scale) {
  const vantage::Shape shape = shape_of(q_in, kernel, dilation, stride, is_causal);
  check_alike(k_in, q_in, "k");
  check_alike(v_in, q_in, "v");
  check_bias(bias, shape);
  const Tensor q = with_unit_stride(q_in), k = with_unit_stride(k_in), v = with_unit_stride(v_in);
  Tensor out = empty_as(q, sizes_of(q, q.dim()), q.scalar_type());
  Tensor lse = empty_as(q, sizes_of(q, q.dim() - 1), ScalarType::Float);
  auto run = [&](auto zero) {
    using T = decltype(zero);
    run_forward<T>({shape, read<T>(q), read<T>(k), read<T>(v), write<T>(out),
                    view_of<float>(lse, lse.mutable_data_ptr(), false),
                    bias ? static_cast<const float*>(bias->const_data_ptr()) : nullptr, float(scale)});
  };
  if (q.scalar_type() == ScalarType::Float) run(float{});
  else if (q.scalar_type() == ScalarType::BFloat16) run(vantage::BFloat16{});
  else STD_TORCH_CHECK(false, "neighborhood_attention_native: use float32 or bfloat16");
  return {out, lse};
}

template <typename T>
void run_backward(vantage::BackwardCall<T> call, const Tensor& like, float* grad_bias) {
  const vantage::Shape& shape = call.shape;
  const bool slides = shape.slides(), narrow = is_narrow(shape);
  const int64_t tasks = !slides  ? shape.batch * shape.heads
                        : narrow ? vantage::narrow::backward_tasks(shape)
                                 : vantage::wide::backward_tasks(shape);
  std::vector<float> partial(grad_bias ? size_t(tasks * shape.table()) : 0);
  call.grad_bias = partial.data();
  if (!slides) {
    torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      vantage::wide::backward_general(call, begin, end);
    });
  } else {
    const int64_t size =
        narrow ? vantage::narrow::backward_workspace(shape) : vantage::wide::backward_workspace(shape);
    std::optional<Tensor> workspace;
    if (size) {
      workspace = empty_as(like, {size}, ScalarType::Float);
      call.workspace = static_cast<float*>(workspace->mutable_data_ptr());
    }
    if (narrow) vantage::narrow::run_backward(call);
    else vantage::wide::run_backward(call);
  }
  if (grad_bias) {
    // tasks of one head are spread over images and residue classes
    const int64_t per_head = tasks / (shape.batch * shape.heads), table = shape.table();
    std::vector<double> sum(static_cast<size_t>(table));
    for (int64_t head = 0; head < shape.heads; ++head) {
      std::fill(sum.begin(), sum.end(), 0.0);
      for (int64_t b = 0; b < shape.batch; ++b)
        for (int64_t i = 0; i < per_head; ++i)
          for (int64_t j = 0; j < table; ++j)
            sum[j] += partial[((b * shape.heads + head) * per_head + i) * table + j];
      for (int64_t j = 0; j < table; ++j) grad_bias[head * table + j] = float(sum[j]);
    }
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad_out_in, const std::optional<Tensor>& grad_lse,
                                                    const Tensor& q_in, const Tensor& k_in, const Tensor& v_in,
                                                    const std::optional<Tensor>& bias, const Tensor& out_in,
                                                    const Tensor& lse, Ints kernel, Ints dilation, Ints stride,
                                                    Ints is_causal, double scale) {
  const vantage::Shape shape = shape_of(q_in, kernel, dilation, stride, is_causal);
  check_alike(k_in, q_in, "k");
  check_alike(v_in, q_in, "v");
  check_alike(out_in, q_in, "out");
  check_alike(grad_out_in, q_in, "grad_out");
  check_lse(lse, q_in, "lse");
  STD_TORCH_CHECK(lse.is_contiguous(), "neighborhood_attention_native: lse must be contiguous");
  if (grad_lse) check_lse(*grad_lse, q_in, "grad_lse");
  check_bias(bias, shape);
  const Tensor q = with_unit_stride(q_in), k = with_unit_stride(k_in), v = with_unit_stride(v_in);
  const Tensor out = with_unit_stride(out_in), grad_out = with_unit_stride(grad_out_in);
  const auto sizes = sizes_of(q, q.dim());
  Tensor grad_q = empty_as(q, sizes, q.scalar_type()), grad_k = empty_as(q, sizes, q.scalar_type());
  Tensor grad_v = empty_as(q, sizes, q.scalar_type());
  Tensor grad_bias =
      empty_as(q, bias ? sizes_of(*bias, bias->dim()) : std::vector<int64_t>{0}, ScalarType::Float);
  auto run = [&](auto zero) {
    using T = decltype(zero);
    vantage::BackwardCall<T> call;
    call.shape = shape;
    call.q = read<T>(q), call.k = read<T>(k), call.v = read<T>(v), call.out = read<T>(out);
    call.grad_out = read<T>(grad_out);
    call.lse = view_of<const float>(lse, lse.const_data_ptr(), false);
    if (grad_lse) call.grad_lse = view_of<const float>(*grad_lse, grad_lse->const_data_ptr(), false);
    call.grad_q = write<T>(grad_q), call.grad_k = write<T>(grad_k), call.grad_v = write<T>(grad_v);
    call.bias = bias ? static_cast<const float*>(bias->const_data_ptr()) : nullptr;
    call.workspace = nullptr;
    call.scale = float(scale);
    run_backward<T>(call, q, bias ? static_cast<float*>(grad_bias.mutable_data_ptr()) : nullptr);
  };
  if (q.scalar_type() == ScalarType::Float) run(float{});
  else if (q.scalar_type() == ScalarType::BFloat16) run(vantage::BFloat16{});
  else STD_TORCH_CHECK(false, "neighborhood_attention_native: use float32 or bfloat16");
  return {grad_q, grad_k, grad_v, grad_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vantage, CPU, library) {
  library.impl("neighborhood_attention_native", TORCH_BOX(&forward));
  library.impl("neighborhood_attention_native_backward", TORCH_BOX(&backward));
}
