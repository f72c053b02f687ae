// What a call brings: shapes, memory, scale. The fast path is compiled for two widths of vectors.
#pragma once

#include "bfloat16.h"
#include "geometry.h"

namespace vantage {

template <typename T>
struct ForwardCall {
  Shape shape;
  View<const T> q, k, v;
  View<T> out;
  View<float> lse;
  const float* bias;  // (heads, table) or null
  float scale;
};

template <typename T>
struct BackwardCall {
  Shape shape;
  View<const T> q, k, v, out, grad_out;
  View<const float> lse, grad_lse;  // grad_lse.data may be null
  View<T> grad_q, grad_k, grad_v;
  const float* bias;   // (heads, table) or null
  float* grad_bias;    // (tasks, table) partial sums, zeroed, or null
  float* workspace;    // (tasks, gradient_size) where a unit is cut into chunks, else null
  float scale;
};

// Each is instantiated for float and BFloat16 in wide.cpp and narrow.cpp. A backward
// call needs backward_workspace(shape) floats of memory (none where no unit is cut into chunks) and leaves
// backward_tasks(shape) partial sums of the bias's gradient.
namespace wide {
int lanes();
template <typename T>
void run_forward(const ForwardCall<T>& call);
template <typename T>
void run_backward(BackwardCall<T>& call);
int64_t backward_tasks(const Shape& shape);
int64_t backward_workspace(const Shape& shape);
}  // namespace wide
namespace narrow {
int lanes();
template <typename T>
void run_forward(const ForwardCall<T>& call);
template <typename T>
void run_backward(BackwardCall<T>& call);
int64_t backward_tasks(const Shape& shape);
int64_t backward_workspace(const Shape& shape);
}  // namespace narrow

}  // namespace vantage
