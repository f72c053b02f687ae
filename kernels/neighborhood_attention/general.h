// Strided and causal windows: plain loops over the keys of each query, exact for every parameter.
#pragma once

#include <cmath>
#include <vector>

#include "calls.h"
#include "simd.h"

namespace vantage::VANTAGE_WIDTH {

// Keys of the query at `index`: first, first + dilation, ..., `count` of them
struct Window {
  int64_t first, count;
};
static inline Window window_of(const Axis& axis, int64_t index) {
  const int64_t residue = index % axis.dilation, i = index / axis.dilation, n = axis.class_length(residue);
  const int64_t group = i / axis.stride * axis.stride;
  int64_t first, last;
  if (axis.is_causal) {
    first = std::max<int64_t>(std::min(group + axis.stride - 1, n - 1) - axis.kernel + 1, 0);
    last = i;
  } else {
    const int64_t leader = std::min(group + axis.stride / 2, n - 1);
    first = std::min(std::max<int64_t>(leader - axis.kernel / 2, 0), n - axis.kernel);
    last = first + axis.kernel - 1;
  }
  return {first * axis.dilation + residue, last - first + 1};
}

// A head of an image as contiguous floats (tokens, dim)
template <typename T>
static void gather_head(const View<const T>& view, const Shape& shape, int64_t b, int64_t h, float factor, float* out) {
  const T* base = view.data + b * view.batch + h * view.head;
  for (int64_t t = 0; t < shape.axes[0].length; ++t)
    for (int64_t y = 0; y < shape.axes[1].length; ++y)
      for (int64_t x = 0; x < shape.axes[2].length; ++x, out += shape.dim) {
        const T* token = base + t * view.axis[0] + y * view.axis[1] + x * view.axis[2];
        for (int64_t d = 0; d < shape.dim; ++d) out[d] = to_float(token[d]) * factor;
      }
}
template <typename T>
static void scatter_head(const float* in, const Shape& shape, int64_t b, int64_t h, float factor, const View<T>& view) {
  T* base = view.data + b * view.batch + h * view.head;
  for (int64_t t = 0; t < shape.axes[0].length; ++t)
    for (int64_t y = 0; y < shape.axes[1].length; ++y)
      for (int64_t x = 0; x < shape.axes[2].length; ++x, in += shape.dim) {
        T* token = base + t * view.axis[0] + y * view.axis[1] + x * view.axis[2];
        for (int64_t d = 0; d < shape.dim; ++d) from_float(in[d] * factor, token + d);
      }
}

// Calls f(n, key, bias index) for the n-th key of query (t, y, x); returns how many there are
template <typename F>
static int64_t for_each_key(const Shape& shape, int64_t t, int64_t y, int64_t x, F f) {
  const Axis &at = shape.axes[0], &ay = shape.axes[1], &ax = shape.axes[2];
  const Window wt = window_of(at, t), wy = window_of(ay, y), wx = window_of(ax, x);
  int64_t n = 0;
  for (int64_t i = 0; i < wt.count; ++i)
    for (int64_t j = 0; j < wy.count; ++j)
      for (int64_t l = 0; l < wx.count; ++l, ++n) {
        const int64_t kt = wt.first + i * at.dilation, ky = wy.first + j * ay.dilation, kx = wx.first + l * ax.dilation;
        const int64_t dt = (kt - t) / at.dilation + at.kernel - 1, dy = (ky - y) / ay.dilation + ay.kernel - 1;
        const int64_t dx = (kx - x) / ax.dilation + ax.kernel - 1;
        f(n, (kt * ay.length + ky) * ax.length + kx,
          (dt * (2 * ay.kernel - 1) + dy) * (2 * ax.kernel - 1) + dx);
      }
  return n;
}

static inline void add_scaled(float* out, float factor, const float* in, int64_t dim) {
  for (int64_t d = 0; d < dim; ++d) out[d] += factor * in[d];
}

// Heads first .. last - 1 of batch * heads
template <typename T>
static void forward_general(const ForwardCall<T>& call, int64_t first_head, int64_t last_head) {
  const Shape& shape = call.shape;
  const int64_t size = shape.tokens() * shape.dim, dim = shape.dim;
  std::vector<float> q(size), k(size), v(size), out(size), weights(shape.kernel_volume());
  for (int64_t index = first_head; index < last_head; ++index) {
    const int64_t b = index / shape.heads, h = index % shape.heads;
    gather_head(call.q, shape, b, h, call.scale, q.data());
    gather_head(call.k, shape, b, h, 1.0f, k.data());
    gather_head(call.v, shape, b, h, 1.0f, v.data());
    std::fill(out.begin(), out.end(), 0.0f);
    const float* bias = call.bias ? call.bias + h * shape.table() : nullptr;
    int64_t token = 0;
    for (int64_t t = 0; t < shape.axes[0].length; ++t)
      for (int64_t y = 0; y < shape.axes[1].length; ++y)
        for (int64_t x = 0; x < shape.axes[2].length; ++x, ++token) {
          float top = -INFINITY, sum = 0.0f;
          const float* query = q.data() + token * dim;
          const int64_t count = for_each_key(shape, t, y, x, [&](int64_t n, int64_t key, int64_t at) {
            weights[n] = dot(query, k.data() + key * dim, dim) + (bias ? bias[at] : 0.0f);
            top = std::max(top, weights[n]);
          });
          for (int64_t n = 0; n < count; ++n) sum += weights[n] = std::exp(weights[n] - top);
          float* result = out.data() + token * dim;
          for_each_key(shape, t, y, x, [&](int64_t n, int64_t key, int64_t) {
            add_scaled(result, weights[n], v.data() + key * dim, dim);
          });
          for (int64_t d = 0; d < dim; ++d) result[d] /= sum;
          call.lse.data[b * call.lse.batch + token * call.lse.axis[2] + h * call.lse.head] = top + std::log(sum);
        }
    scatter_head(out.data(), shape, b, h, 1.0f, call.out);
  }
}

template <typename T>
static void backward_general(const BackwardCall<T>& call, int64_t first_head, int64_t last_head) {
  const Shape& shape = call.shape;
  const int64_t size = shape.tokens() * shape.dim, dim = shape.dim;
  std::vector<float> q(size), k(size), v(size), out(size), grad(size), grad_q(size), grad_k(size), grad_v(size);
  for (int64_t index = first_head; index < last_head; ++index) {
    const int64_t b = index / shape.heads, h = index % shape.heads;
    gather_head(call.q, shape, b, h, 1.0f, q.data());
    gather_head(call.k, shape, b, h, 1.0f, k.data());
    gather_head(call.v, shape, b, h, 1.0f, v.data());
    gather_head(call.out, shape, b, h, 1.0f, out.data());
    gather_head(call.grad_out, shape, b, h, 1.0f, grad.data());
    for (auto* g : {&grad_q, &grad_k, &grad_v}) std::fill(g->begin(), g->end(), 0.0f);
    const float* bias = call.bias ? call.bias + h * shape.table() : nullptr;
    float* grad_bias = call.bias ? call.grad_bias + index * shape.table() : nullptr;
    int64_t token = 0;
    for (int64_t t = 0; t < shape.axes[0].length; ++t)
      for (int64_t y = 0; y < shape.axes[1].length; ++y)
        for (int64_t x = 0; x < shape.axes[2].length; ++x, ++token) {
          const int64_t at_lse = b * call.lse.batch + token * call.lse.axis[2] + h * call.lse.head;
          const float* go = grad.data() + token * dim;
          float delta = dot(go, out.data() + token * dim, dim);
          if (call.grad_lse.data)
            delta -= call.grad_lse.data[b * call.grad_lse.batch + t * call.grad_lse.axis[0] + y * call.grad_lse.axis[1] +
                                        x * call.grad_lse.axis[2] + h * call.grad_lse.head];
          for_each_key(shape, t, y, x, [&](int64_t, int64_t key, int64_t at) {
            const float logit = call.scale * dot(q.data() + token * dim, k.data() + key * dim, dim) +
                                (bias ? bias[at] : 0.0f);
            const float weight = std::exp(logit - call.lse.data[at_lse]);
            const float slope = weight * (dot(go, v.data() + key * dim, dim) - delta);
            add_scaled(grad_q.data() + token * dim, slope, k.data() + key * dim, dim);
            add_scaled(grad_k.data() + key * dim, slope, q.data() + token * dim, dim);
            add_scaled(grad_v.data() + key * dim, weight, go, dim);
            if (grad_bias) grad_bias[at] += slope;
          });
        }
    scatter_head(grad_q.data(), shape, b, h, call.scale, call.grad_q);
    scatter_head(grad_k.data(), shape, b, h, call.scale, call.grad_k);
    scatter_head(grad_v.data(), shape, b, h, 1.0f, call.grad_v);
  }
}

}  // namespace vantage::VANTAGE_WIDTH
