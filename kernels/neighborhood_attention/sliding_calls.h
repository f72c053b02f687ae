// The fast path of one width, over all cores.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "backward.h"

namespace vantage::VANTAGE_WIDTH {

int lanes() { return kLanes; }

template <typename T>
void run_forward(const ForwardCall<T>& call) {
  const Split split(call.shape, kMaxRows, torch::stable::get_num_threads());
  torch::stable::parallel_for(0, split.units * split.chunks, 1, [&](int64_t begin, int64_t end) {
    forward_sliding(call, split, begin, end);
  });
}

static Split backward_split(const Shape& shape) {
  return Split(shape, backward_rows(shape), torch::stable::get_num_threads());
}
int64_t backward_tasks(const Shape& shape) {
  const Split split = backward_split(shape);
  return split.units * split.chunks;
}
int64_t backward_workspace(const Shape& shape) {
  return backward_split(shape).chunks > 1 ? backward_tasks(shape) * gradient_size(shape) : 0;
}

template <typename T>
void run_backward(BackwardCall<T>& call) {
  const Split split = backward_split(call.shape);
  torch::stable::parallel_for(0, split.units * split.chunks, 1, [&](int64_t begin, int64_t end) {
    backward_sliding(call, split, begin, end);
  });
  if (split.chunks == 1) return;
  const Layout layout(call.shape);
  const int64_t size = gradient_size(call.shape);
  torch::stable::parallel_for(0, split.units, 1, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit)
      store_key_gradients(call, Unit::of(call.shape, unit), layout, call.workspace + unit * split.chunks * size,
                          split.chunks, size);
  });
}

template void run_forward<float>(const ForwardCall<float>&);
template void run_forward<BFloat16>(const ForwardCall<BFloat16>&);
template void run_backward<float>(BackwardCall<float>&);
template void run_backward<BFloat16>(BackwardCall<BFloat16>&);

}  // namespace vantage::VANTAGE_WIDTH
