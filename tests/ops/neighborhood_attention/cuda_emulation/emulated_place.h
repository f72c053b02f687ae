// cuda_place.cuh on a CPU: the ops take CPU tensors, and `emulated_gpu` says what they run on.
#pragma once

#include "cuda_backward.cuh"

#include <torch/csrc/stable/tensor.h>

#define DISPATCH_KEY CPU

namespace vantage::cuda {

struct Gpu {
  int64_t shared_limit, blocks_with_tables, falling, late_copies;  // shared_limit 0: as little as will do
};
inline Gpu emulated_gpu;

inline bool is_here(const torch::stable::Tensor& t) { return t.is_cpu(); }

struct Place {
  explicit Place(const torch::stable::Tensor&) {}

  template <class T>
  BackwardPlan plan(const Problem& problem, bool has_bias) const {
    for (size_t limit = shared_limit ? shared_limit : 1024;; limit += 512) try {
        return plan_backward<T>(problem, has_bias, limit, int(emulated_gpu.blocks_with_tables));
      } catch (const std::exception&) {
        if (shared_limit) throw;
      }
  }

  Stream stream{emulated_gpu.falling != 0, emulated_gpu.late_copies != 0};
  size_t shared_limit = emulated_gpu.shared_limit;
};

}  // namespace vantage::cuda
