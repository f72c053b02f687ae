// Where a call runs: kernels go to the current stream of q's device. The tests replace this file too (VANTAGE_EMULATE).
#pragma once

#include "cuda_backward.cuh"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#define DISPATCH_KEY CUDA

namespace vantage::cuda {

inline bool is_here(const torch::stable::Tensor& t) { return t.is_cuda(); }

struct Place {
  explicit Place(const torch::stable::Tensor& q) : guard(q.get_device_index()) {
    const int device = q.get_device_index();
    // the guard sets the device of torch's CUDA runtime; this library has a runtime of its own, linked in
    STD_CUDA_CHECK(cudaSetDevice(device));
    void* current = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &current));
    stream = static_cast<cudaStream_t>(current);
    int bytes = 0;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    shared_limit = bytes;
  }

  template <class T>
  BackwardPlan plan(const Problem& problem, bool has_bias) const {
    return plan_backward<T>(problem, has_bias, shared_limit);
  }

  torch::stable::accelerator::DeviceGuard guard;
  Stream stream;
  size_t shared_limit;
};

}  // namespace vantage::cuda
