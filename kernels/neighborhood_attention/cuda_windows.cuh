// Which keys a query sees and which queries see a key: the border rule of windows.py and its inverse, in integers.
// Everything here runs on the host and on the device; a test compares it with windows.py.
#pragma once

#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__ __forceinline__
#else
#define HOST_DEVICE inline
#endif

namespace vantage::cuda {

HOST_DEVICE int least(int a, int b) { return a < b ? a : b; }
HOST_DEVICE int most(int a, int b) { return a > b ? a : b; }
HOST_DEVICE int ceil_divide(int a, int b) { return (a + b - 1) / b; }  // a >= 0

// One axis of a call: kernel * dilation <= length, stride <= kernel
struct Axis {
  int length = 1, kernel = 1, dilation = 1, stride = 1, is_causal = 0;

  // Tokens residue, residue + dilation, ...; indices below count within such a class
  HOST_DEVICE int class_length(int residue) const { return ceil_divide(length - residue, dilation); }
};

struct Range {
  int first, last;  // inclusive; empty where last < first
};

// Keys of query i in a class of `length` tokens
HOST_DEVICE Range window(const Axis& axis, int length, int i) {
  const int group = i / axis.stride * axis.stride;
  if (axis.is_causal) {
    const int leader = least(group + axis.stride - 1, length - 1);
    return {most(leader - axis.kernel + 1, 0), i};
  }
  const int leader = least(group + axis.stride / 2, length - 1);
  const int first = least(most(leader - axis.kernel / 2, 0), length - axis.kernel);
  return {first, first + axis.kernel - 1};
}

// Queries that see key j. Windows move forward with their query, so that these are neighbors: from the first query
// whose window ends at j or later to the last whose window starts at j or earlier.
HOST_DEVICE Range inverse_window(const Axis& axis, int length, int j) {
  const int stride = axis.stride, kernel = axis.kernel;
  if (axis.is_causal) {  // window starts at most j: leader <= j + kernel - 1, where the last leader is length - 1
    const int reach = j + kernel - 1;
    const int last = reach >= length - 1 ? length - 1 : (reach - stride + 1) / stride * stride + stride - 1;
    return {j, last};
  }
  // leaders before the last are group + stride / 2; a clamped start is between 1 and length - kernel - 1 only where
  // the leader is not clamped
  const int half = kernel / 2 - stride / 2;  // >= 0
  const int start = j - kernel + 1;          // of the first window that ends at j or later
  const int first = start <= 0 ? 0 : ceil_divide(start + half, stride) * stride;
  const int last = j >= length - kernel ? length - 1 : least((j + half) / stride * stride + stride - 1, length - 1);
  return {first, last};
}

}  // namespace vantage::cuda
