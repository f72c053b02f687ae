// Where tokens lie and which of them a query sees. Every call has three axes; missing leading ones have length 1.
#pragma once

#include <algorithm>
#include <cstdint>

namespace vantage {

struct Axis {
  int64_t length = 1, kernel = 1, dilation = 1, stride = 1;
  bool is_causal = false;

  int64_t left() const { return kernel / 2; }  // of an unshifted window
  // Tokens of the residue class `residue` (indices residue, residue + dilation, ...)
  int64_t class_length(int64_t residue) const { return (length - residue + dilation - 1) / dilation; }
};

// Element strides of a (batch, axis 0, axis 1, axis 2, heads, dim) tensor whose last stride is 1
template <typename T>
struct View {
  T* data = nullptr;
  int64_t batch = 0, axis[3] = {0, 0, 0}, head = 0;
};

struct Shape {
  int64_t batch, heads, dim;
  Axis axes[3];

  int64_t kernel_volume() const { return axes[0].kernel * axes[1].kernel * axes[2].kernel; }
  int64_t tokens() const { return axes[0].length * axes[1].length * axes[2].length; }
  int64_t table_rows() const { return (2 * axes[0].kernel - 1) * (2 * axes[1].kernel - 1); }
  int64_t table_columns() const { return 2 * axes[2].kernel - 1; }
  int64_t table() const { return table_rows() * table_columns(); }
  bool slides() const {  // every window is that of its own query
    for (const Axis& axis : axes)
      if (axis.is_causal || axis.stride != 1) return false;
    return true;
  }
};

// One residue class of one head of one image: a dense map of size n[0] x n[1] x n[2]
struct Unit {
  int64_t batch, head, residue[3], n[3];

  static Unit of(const Shape& shape, int64_t index) {
    Unit unit;
    for (int a = 2; a >= 0; --a) {
      unit.residue[a] = index % shape.axes[a].dilation;
      unit.n[a] = shape.axes[a].class_length(unit.residue[a]);
      index /= shape.axes[a].dilation;
    }
    unit.head = index % shape.heads;
    unit.batch = index / shape.heads;
    return unit;
  }
  static int64_t count(const Shape& shape) {
    return shape.batch * shape.heads * shape.axes[0].dilation * shape.axes[1].dilation * shape.axes[2].dilation;
  }
  // Token (i0, i1, 0) of the class
  template <typename T>
  T* row(const View<T>& view, const Shape& shape, int64_t i0, int64_t i1) const {
    return view.data + batch * view.batch + head * view.head +
           (residue[0] + i0 * shape.axes[0].dilation) * view.axis[0] +
           (residue[1] + i1 * shape.axes[1].dilation) * view.axis[1] + residue[2] * view.axis[2];
  }
};

// A clamped window is an ordinary sliding window on a map that is continued with period `kernel` over its borders:
// softmax does not mind the order of the keys, and the indices i - left .. i - left + kernel - 1, each outside one moved
// by one period, are exactly those of the clamped window. Holds for even kernels too, as kernel <= length.
static inline int64_t continued(int64_t index, int64_t length, int64_t kernel) {
  return index < 0 ? index + kernel : index >= length ? index - kernel : index;
}

static inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

}  // namespace vantage
