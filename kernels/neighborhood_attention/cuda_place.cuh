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
    check(cudaSetDevice(device));
    void* current = nullptr;
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(device, &current) == AOTI_TORCH_SUCCESS,
                    "neighborhood_attention_cuda: device ", device, " has no current stream");
    stream = static_cast<cudaStream_t>(current);
    int bytes = 0;
    check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    shared_limit = bytes;
  }

  static void check(cudaError_t error) {  // torch 2.10 has no macro for it
    STD_TORCH_CHECK(error == cudaSuccess, "neighborhood_attention_cuda: ", cudaGetErrorString(error));
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
