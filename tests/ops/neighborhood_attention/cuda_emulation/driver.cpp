// The ops on the emulated kernels, registered for CPU tensors, and what the tests ask besides, for ctypes.
#include "cuda.cu"

using namespace vantage::cuda;

#define EXPORT __attribute__((visibility("default")))

extern "C" {

EXPORT void run_on(Gpu gpu) { emulated_gpu = gpu; }

// first and last of window (or inverse_window) of every index of a class
EXPORT void windows(const int64_t* axis, int64_t residue, int64_t inverse, int64_t* first_and_last) {
  const Axis along{int(axis[0]), int(axis[1]), int(axis[2]), int(axis[3]), int(axis[4])};
  const int length = along.class_length(int(residue));
  for (int i = 0; i < length; ++i) {
    const Range range = inverse ? inverse_window(along, length, i) : window(along, length, i);
    first_and_last[2 * i] = range.first, first_and_last[2 * i + 1] = range.last;
  }
}
}
