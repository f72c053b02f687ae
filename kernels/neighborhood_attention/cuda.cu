// The CUDA backend of neighborhood attention, as the ops that registration.py defines, through torch's stable ABI.
// What the kernels do: cuda_forward.cuh and cuda_backward.cuh.
#include "cuda_backward.cuh"
#include "cuda_forward.cuh"

#ifdef VANTAGE_EMULATE
#include "emulated_place.h"
#else
#include "cuda_place.cuh"
#endif

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>
#include <vector>

namespace vantage::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct Window {
  std::vector<int64_t> kernel_size, dilation, stride, is_causal;
  double scale;
};

// (batch, *lengths, heads, head_dim), or without head_dim: leading axes of length 1 up to three
Problem problem_of(const Tensor& q, const Window& window) {
  const int axes = int(q.dim()) - 3;
  STD_TORCH_CHECK(axes >= 1 && axes <= 3, "neighborhood_attention: q must have 4 to 6 dimensions");
  for (const auto* values : {&window.kernel_size, &window.dilation, &window.stride, &window.is_causal})
    STD_TORCH_CHECK(int(values->size()) == axes, "neighborhood_attention: one window parameter per axis is needed");
  Axis axis[3];
  for (int a = 0; a < axes; ++a) {
    axis[3 - axes + a] = {int(q.size(1 + a)), int(window.kernel_size[a]), int(window.dilation[a]),
                          int(window.stride[a]), int(window.is_causal[a])};
    const Axis& made = axis[3 - axes + a];
    // the kernels rely on these, and a wrong one would read memory that is not theirs
    STD_TORCH_CHECK(
        q.size(1 + a) < int64_t(1) << 30 && made.kernel >= 1 && made.dilation >= 1 && made.stride >= 1 &&
            int64_t(made.kernel) * made.dilation <= made.length && made.stride <= made.kernel,
        "neighborhood_attention: the window does not fit axis ", a, " of length ", made.length);
  }
  return make_problem(q.size(0), q.size(q.dim() - 2), q.size(q.dim() - 1), window.scale, axis);
}

// The tensor itself, or a copy where its last dimension is strided
Tensor with_dense_rows(const Tensor& t) {
  return t.size(t.dim() - 1) == 1 || t.stride(t.dim() - 1) == 1 ? t : torch::stable::contiguous(t);
}

template <class T>
View<T> view_of(const Tensor& t) {
  const int axes = int(t.dim()) - 3;
  int64_t strides[5] = {t.stride(0), 0, 0, 0, t.stride(t.dim() - 2)};
  for (int a = 0; a < axes; ++a) strides[4 - axes + a] = t.stride(1 + a);
  return make_view(static_cast<T*>(t.data_ptr()), strides, t.size(t.dim() - 1));
}

Tensor empty_as(const Tensor& t) { return torch::stable::new_empty(t, t.sizes()); }
Tensor empty_floats(const Tensor& like, std::vector<int64_t> sizes) {
  return torch::stable::new_empty(like, sizes, ScalarType::Float);
}
std::vector<int64_t> sizes_without_last(const Tensor& t) {
  const auto sizes = t.sizes();
  return std::vector<int64_t>(sizes.begin(), sizes.end() - 1);
}
Tensor contiguous_floats(const Tensor& t) {
  return torch::stable::contiguous(torch::stable::to(t, ScalarType::Float));
}

template <class Run>
void with_type(const Tensor& q, Run run) {
  switch (q.scalar_type()) {
    case ScalarType::Float: return run(float{});
    case ScalarType::Half: return run(Half{});
    case ScalarType::BFloat16: return run(BFloat{});
    default: STD_TORCH_CHECK(false, "neighborhood_attention: backend='cuda' takes float32, float16 or bfloat16");
  }
}

void check_alike(const Tensor& q, std::initializer_list<const Tensor*> others) {
  for (const Tensor* other : others) {
    bool is_alike = is_here(*other) && other->get_device_index() == q.get_device_index() &&
                    other->scalar_type() == q.scalar_type() && other->dim() == q.dim();
    for (int64_t d = 0; is_alike && d < q.dim(); ++d) is_alike = other->size(d) == q.size(d);
    STD_TORCH_CHECK(is_alike, "neighborhood_attention: a tensor differs from q in shape, dtype or device");
  }
}

void check_bias(const Tensor& q, const Problem& problem, const std::optional<Tensor>& bias) {
  if (!bias) return;
  const int64_t size = problem.heads * problem.table_size;
  STD_TORCH_CHECK(
      is_here(*bias) && bias->get_device_index() == q.get_device_index() && bias->numel() == size && size <= INT32_MAX,
      "neighborhood_attention: bias has another size or device than the call needs");
}

std::tuple<Tensor, Tensor> forward(
    const Tensor& q_in, const Tensor& k_in, const Tensor& v_in, const std::optional<Tensor>& bias,
    std::vector<int64_t> kernel_size, std::vector<int64_t> dilation, std::vector<int64_t> stride,
    std::vector<int64_t> is_causal, double scale) {
  check_alike(q_in, {&k_in, &v_in});
  const Place place(q_in);
  const Problem problem = problem_of(q_in, {kernel_size, dilation, stride, is_causal, scale});
  check_bias(q_in, problem, bias);
  const Tensor q = with_dense_rows(q_in), k = with_dense_rows(k_in), v = with_dense_rows(v_in);
  std::optional<Tensor> table;
  if (bias) table = contiguous_floats(*bias);
  Tensor out = empty_as(q_in), lse = empty_floats(q_in, sizes_without_last(q_in));
  with_type(q, [&](auto type) {
    using T = decltype(type);
    ForwardArguments<T> a{};
    a.problem = problem;
    a.q = view_of<const T>(q), a.k = view_of<const T>(k), a.v = view_of<const T>(v), a.out = view_of<T>(out);
    a.lse = static_cast<float*>(lse.data_ptr());
    a.bias = table ? static_cast<const float*>(table->data_ptr()) : nullptr;
    run_forward(a, place.shared_limit, place.stream);
  });
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& grad_out_in, const std::optional<Tensor>& grad_lse_in, const Tensor& q_in, const Tensor& k_in,
    const Tensor& v_in, const std::optional<Tensor>& bias, const Tensor& out_in, const Tensor& lse_in,
    std::vector<int64_t> kernel_size, std::vector<int64_t> dilation, std::vector<int64_t> stride,
    std::vector<int64_t> is_causal, double scale) {
  check_alike(q_in, {&k_in, &v_in, &out_in, &grad_out_in});
  const Place place(q_in);
  const Problem problem = problem_of(q_in, {kernel_size, dilation, stride, is_causal, scale});
  check_bias(q_in, problem, bias);
  const Tensor q = with_dense_rows(q_in), k = with_dense_rows(k_in), v = with_dense_rows(v_in);
  const Tensor out = with_dense_rows(out_in), grad_out = with_dense_rows(grad_out_in);
  const int64_t statistics = q.numel() / problem.head_dim;
  const Tensor lse = contiguous_floats(lse_in);
  std::optional<Tensor> grad_lse, table;
  if (grad_lse_in) grad_lse = contiguous_floats(*grad_lse_in);
  if (bias) table = contiguous_floats(*bias);
  STD_TORCH_CHECK(
      lse.numel() == statistics && (!grad_lse || grad_lse->numel() == statistics),
      "neighborhood_attention: lse has another size than the call needs");
  Tensor grad_q = empty_as(q_in), grad_k = empty_as(q_in), grad_v = empty_as(q_in);
  Tensor delta = empty_floats(q_in, {statistics});
  std::vector<int64_t> table_sizes = {0};
  if (bias) table_sizes.assign(bias->sizes().begin(), bias->sizes().end());
  Tensor grad_bias = empty_floats(q_in, table_sizes);
  with_type(q, [&](auto type) {
    using T = decltype(type);
    const BackwardPlan plan = place.plan<T>(problem, bias.has_value());
    const Tensor partials = empty_floats(q_in, {plan.partials(problem)});
    BackwardArguments<T> a{};
    a.problem = problem;
    a.q = view_of<const T>(q), a.k = view_of<const T>(k), a.v = view_of<const T>(v);
    a.out = view_of<const T>(out), a.grad_out = view_of<const T>(grad_out);
    a.grad_q = view_of<T>(grad_q), a.grad_k = view_of<T>(grad_k), a.grad_v = view_of<T>(grad_v);
    a.lse = static_cast<const float*>(lse.data_ptr());
    a.grad_lse = grad_lse ? static_cast<const float*>(grad_lse->data_ptr()) : nullptr;
    a.delta = static_cast<float*>(delta.data_ptr());
    a.bias = table ? static_cast<const float*>(table->data_ptr()) : nullptr;
    a.grad_bias = static_cast<float*>(grad_bias.data_ptr());
    a.partials = static_cast<float*>(partials.data_ptr());
    run_backward(a, plan, place.stream);
  });
  if (bias && bias->scalar_type() != ScalarType::Float) grad_bias = torch::stable::to(grad_bias, bias->scalar_type());
  return {grad_q, grad_k, grad_v, grad_bias};
}

}  // namespace
}  // namespace vantage::cuda

STABLE_TORCH_LIBRARY_IMPL(vantage, DISPATCH_KEY, library) {
  library.impl("neighborhood_attention_cuda", TORCH_BOX(&vantage::cuda::forward));
  library.impl("neighborhood_attention_cuda_backward", TORCH_BOX(&vantage::cuda::backward));
}
