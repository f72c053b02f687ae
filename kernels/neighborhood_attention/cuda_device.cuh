// What the kernels ask of the machine, from sm_80 on: warps, asynchronous copies, matrix instructions, 16-bit numbers.
//
// The tests replace this file by an emulation of the same functions (VANTAGE_EMULATE), and so run the kernels on a CPU.
// A fragment is spread over a warp as in mma.m16n8k16: with g = lane / 4 and t = lane % 4, a lane holds of a 16 x 8
// accumulator the elements (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

namespace vantage::cuda {

constexpr int THREADS = 128;  // of a block
constexpr int WARPS = THREADS / 32;

// Blocks that share a multiprocessor, at least: a fourth, or a third from D = 128 on, would spill registers.
// D: head_dim rounded up to what the kernels are compiled for
template <int D>
constexpr int MIN_BLOCKS = D < 128 ? 3 : 2;

struct Half {
  uint16_t bits;
};
struct BFloat {
  uint16_t bits;
};

}  // namespace vantage::cuda

#ifdef VANTAGE_EMULATE
#include "emulation.h"
#else

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#define DEVICE __device__ __forceinline__
#define KERNEL(min_blocks) __global__ void __launch_bounds__(THREADS, min_blocks)
#define CONSTANT const __grid_constant__

namespace vantage::cuda {

using Stream = cudaStream_t;

DEVICE int thread_index() { return threadIdx.x; }
DEVICE int block_index() { return blockIdx.x; }
DEVICE int block_count() { return gridDim.x; }
DEVICE char* shared_memory() {
  extern __shared__ uint4 dynamic[];
  return reinterpret_cast<char*>(dynamic);
}

DEVICE void sync_block() { __syncthreads(); }
DEVICE void sync_warp() { __syncwarp(); }
DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(~0u, value, mask); }
DEVICE uint32_t shuffle(uint32_t value, int lane) { return __shfl_sync(~0u, value, lane); }
DEVICE uint32_t or_over_warp(uint32_t value) { return __reduce_or_sync(~0u, value); }

DEVICE float exp2_of(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DEVICE float log2_of(float x) { return log2f(x); }
DEVICE float read_only(const float* at) { return __ldg(at); }

DEVICE uint32_t shared_address(const void* at) { return static_cast<uint32_t>(__cvta_generic_to_shared(at)); }

// 16 bytes from global to shared memory, in the background until wait_copies
DEVICE void copy_16_bytes(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
DEVICE void wait_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Four 8 x 8 matrices of 16-bit numbers; lane 8 i + r names row r of matrix i and gets elements 2t, 2t + 1 of row g
DEVICE void load_matrices(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}
// The same, but the lane gets elements 2t, 2t + 1 of column g
DEVICE void load_transposed_matrices(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}

#define VANTAGE_MMA(type)                                                             \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 "         \
               "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"      \
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])               \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))

// sum (16 x 8) += a (16 x 16) b (16 x 8)
DEVICE void multiply_add(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Half) {
  VANTAGE_MMA("f16");
}
DEVICE void multiply_add(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, BFloat) {
  VANTAGE_MMA("bf16");
}
#undef VANTAGE_MMA

// Two numbers, the first in the low bits
DEVICE uint32_t pack(float low, float high, Half) {
  uint32_t both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
DEVICE uint32_t pack(float low, float high, BFloat) {
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

DEVICE float to_float(float x) { return x; }
DEVICE float to_float(BFloat x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
DEVICE float to_float(Half x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}

// Every thread of every block calls kernel(arguments)
template <class Arguments>
void launch(void (*kernel)(Arguments), Arguments arguments, int blocks, size_t shared_bytes, Stream stream) {
  cudaError_t error = cudaSuccess;
  if (shared_bytes > 48 * 1024)  // more has to be asked for
    error = cudaFuncSetAttribute(
        reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes));
  if (error == cudaSuccess) {
    kernel<<<blocks, THREADS, shared_bytes, stream>>>(arguments);
    error = cudaGetLastError();
  }
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("neighborhood_attention: backend='cuda': ") + cudaGetErrorString(error));
}

}  // namespace vantage::cuda

#endif
