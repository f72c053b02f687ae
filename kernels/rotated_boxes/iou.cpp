// vantage::rotated_iou_native, its backward, rotated_nms_native and points_in_rotated_boxes_native on the CPU.
// The schemas stand in vantage/ops/rotated_boxes/registration.py; arguments come checked from there.
#include <cstring>
#include <limits>
#include <optional>
#include <tuple>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "overlap.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using vantage::Boxes;

void check(const Tensor& boxes, const char* op, const char* name, int64_t columns = 5) {
  STD_TORCH_CHECK(boxes.dim() == 2 && boxes.size(1) == columns &&
                      (boxes.scalar_type() == ScalarType::Float || boxes.scalar_type() == ScalarType::Double),
                  op, ": ", name, " must be (N, ", columns, ") of float32 or float64");
}
void check_pair(const Tensor& a, const Tensor& b, bool aligned, const char* op) {
  check(a, op, "a");
  check(b, op, "b");
  STD_TORCH_CHECK(a.scalar_type() == b.scalar_type(), op, ": a and b differ in dtype");
  STD_TORCH_CHECK(!aligned || a.size(0) == b.size(0), op, ": aligned boxes differ in number");
}

template <typename T>
const T* data_of(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <typename T>
T* mutable_data_of(Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// Calls `run` with a zero of the tensor's type
template <typename Run>
void by_dtype(const Tensor& tensor, const Run& run) {
  if (tensor.scalar_type() == ScalarType::Float) run(float{});
  else run(double{});
}

// Rows [begin, end) of the (N, M) ratios
template <typename T>
void pairwise_rows(const Boxes& a, const Boxes& b, bool is_iof, T* out, int64_t begin, int64_t end) {
  const int64_t count = b.size();
  std::vector<int32_t> near(static_cast<size_t>(count));
  double values[vantage::kLanes];
  for (int64_t i = begin; i < end; ++i) {
    T* row = out + i * count;
    std::memset(row, 0, size_t(count) * sizeof(T));
    int64_t found = 0;
    for (int64_t j = 0; j < count; ++j) {
      near[found] = int32_t(j);
      found += vantage::may_overlap(a, i, b, j);
    }
    for (int64_t start = 0; start < found; start += vantage::kLanes) {
      const int lanes = int(std::min<int64_t>(vantage::kLanes, found - start));
      vantage::ratios(a, i, b, near.data() + start, lanes, is_iof, values);
      for (int lane = 0; lane < lanes; ++lane) row[near[start + lane]] = T(values[lane]);
    }
  }
}

Tensor iou(const Tensor& a_in, const Tensor& b_in, bool aligned, bool is_iof) {
  check_pair(a_in, b_in, aligned, "rotated_iou_native");
  const Tensor a = torch::stable::contiguous(a_in), b = torch::stable::contiguous(b_in);
  const int64_t rows = a.size(0), columns = b.size(0);
  STD_TORCH_CHECK(columns <= std::numeric_limits<int32_t>::max(), "rotated_iou_native: too many boxes");
  Tensor out =
      torch::stable::new_empty(a, aligned ? std::vector<int64_t>{rows} : std::vector<int64_t>{rows, columns});
  by_dtype(a, [&](auto zero) {
    using T = decltype(zero);
    const T *first = data_of<T>(a), *second = data_of<T>(b);
    T* values = mutable_data_of<T>(out);
    if (aligned) {
      torch::stable::parallel_for(0, rows, 256, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const vantage::Pair pair(first + 5 * i, second + 5 * i);
          values[i] = T(vantage::ratio(pair.intersection(), pair.area_a, pair.area_b, is_iof));
        }
      });
    } else if (rows && columns) {
      const Boxes boxes_a = Boxes::read(first, rows), boxes_b = Boxes::read(second, columns);
      const int64_t grain = std::max<int64_t>(1, 20000 / columns);
      torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
        pairwise_rows(boxes_a, boxes_b, is_iof, values, begin, end);
      });
    }
  });
  return out;
}

std::tuple<Tensor, Tensor> iou_backward(const Tensor& grad_in, const Tensor& a_in, const Tensor& b_in, bool aligned,
                                        bool is_iof) {
  check_pair(a_in, b_in, aligned, "rotated_iou_native_backward");
  const int64_t rows = a_in.size(0), columns = b_in.size(0);
  STD_TORCH_CHECK(grad_in.scalar_type() == a_in.scalar_type() && grad_in.numel() == (aligned ? rows : rows * columns),
                  "rotated_iou_native_backward: grad is not that of the output");
  const Tensor grad = torch::stable::contiguous(grad_in), a = torch::stable::contiguous(a_in),
               b = torch::stable::contiguous(b_in);
  Tensor grad_a = torch::stable::new_empty(a, {rows, 5}), grad_b = torch::stable::new_empty(b, {columns, 5});
  by_dtype(a, [&](auto zero) {
    using T = decltype(zero);
    const T *first = data_of<T>(a), *second = data_of<T>(b), *grads = data_of<T>(grad);
    T *out_a = mutable_data_of<T>(grad_a), *out_b = mutable_data_of<T>(grad_b);
    const auto store = [](const double* sum, T* out) {
      for (int k = 0; k < 5; ++k) out[k] = T(sum[k]);
    };
    if (aligned) {
      torch::stable::parallel_for(0, rows, 128, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          double sum_a[5] = {}, sum_b[5] = {};
          vantage::add_gradients(first + 5 * i, second + 5 * i, is_iof, double(grads[i]), sum_a, sum_b);
          store(sum_a, out_a + 5 * i);
          store(sum_b, out_b + 5 * i);
        }
      });
      return;
    }
    const Boxes boxes_a = Boxes::read(first, rows), boxes_b = Boxes::read(second, columns);
    // once by rows and once by columns: every sum belongs to one thread and has one order
    const auto sum_over = [&](int64_t count, int64_t others, bool by_row, T* out) {
      torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
        for (int64_t index = begin; index < end; ++index) {
          double sum[5] = {}, unused[5] = {};
          for (int64_t other = 0; other < others; ++other) {
            const int64_t i = by_row ? index : other, j = by_row ? other : index;
            const double scale = double(grads[i * columns + j]);
            if (scale == 0.0 || !vantage::may_overlap(boxes_a, i, boxes_b, j)) continue;
            vantage::add_gradients(first + 5 * i, second + 5 * j, is_iof, scale, by_row ? sum : unused,
                                   by_row ? unused : sum);
          }
          store(sum, out + 5 * index);
        }
      });
    };
    sum_over(rows, columns, true, out_a);
    sum_over(columns, rows, false, out_b);
  });
  return {grad_a, grad_b};
}

// Kept boxes by the cell of their centre: which of them a new box may overlap
class Grid {
 public:
  explicit Grid(const Boxes& boxes) : boxes_(boxes), next_(size_t(boxes.size()), -1) {
    double low_x = 0, low_y = 0, high_x = 0, high_y = 0;
    bool is_first = true;
    for (int64_t i = 0; i < boxes.size(); ++i) {
      if (std::isnan(boxes.area[i])) continue;
      const double x = boxes.cx[i], y = boxes.cy[i];
      low_x = is_first ? x : std::min(low_x, x), high_x = is_first ? x : std::max(high_x, x);
      low_y = is_first ? y : std::min(low_y, y), high_y = is_first ? y : std::max(high_y, y);
      largest_ = std::max(largest_, boxes.radius[i]);
      is_first = false;
    }
    cells_ = std::clamp<int64_t>(int64_t(std::sqrt(double(boxes.size()) / 4)), 1, 512);
    low_x_ = low_x, low_y_ = low_y;
    per_x_ = high_x > low_x ? double(cells_) / (high_x - low_x) : 0.0;
    per_y_ = high_y > low_y ? double(cells_) / (high_y - low_y) : 0.0;
    first_.assign(size_t(cells_ * cells_), -1);
  }

  void insert(int64_t i) {
    int32_t& head = first_[row(boxes_.cy[i]) * cells_ + column(boxes_.cx[i])];
    next_[i] = head;
    head = int32_t(i);
  }

  // True as soon as `test(j)` is for a kept box near box i
  template <typename Test>
  bool any(int64_t i, const Test& test) const {
    const double reach = boxes_.radius[i] + largest_, x = boxes_.cx[i], y = boxes_.cy[i];
    const int64_t left = column(x - reach), right = column(x + reach), bottom = row(y + reach);
    for (int64_t r = row(y - reach); r <= bottom; ++r)
      for (int64_t c = left; c <= right; ++c)
        for (int32_t j = first_[r * cells_ + c]; j >= 0; j = next_[j])
          if (test(j)) return true;
    return false;
  }

 private:
  int64_t cell(double steps) const { return int64_t(std::clamp(steps, 0.0, double(cells_ - 1))); }
  int64_t column(double x) const { return cell((x - low_x_) * per_x_); }
  int64_t row(double y) const { return cell((y - low_y_) * per_y_); }

  const Boxes& boxes_;
  double low_x_, low_y_, per_x_, per_y_, largest_ = 0;
  int64_t cells_;
  std::vector<int32_t> first_, next_;
};

// Which boxes stay: a box goes if its IoU with one that stays and comes before it, of the same label, is above the
// threshold. A box that is not finite stays and removes none.
Tensor nms(const Tensor& boxes_in, const std::optional<Tensor>& labels_in, double threshold) {
  check(boxes_in, "rotated_nms_native", "boxes");
  const Tensor tensor = torch::stable::contiguous(boxes_in);
  const int64_t count = tensor.size(0);
  STD_TORCH_CHECK(count <= std::numeric_limits<int32_t>::max(), "rotated_nms_native: too many boxes");
  std::optional<Tensor> labels;
  if (labels_in) {
    STD_TORCH_CHECK(labels_in->dim() == 1 && labels_in->size(0) == count && labels_in->scalar_type() == ScalarType::Long,
                    "rotated_nms_native: labels must be (N,) of int64");
    labels = torch::stable::contiguous(*labels_in);
  }
  const int64_t* label = labels ? data_of<int64_t>(*labels) : nullptr;
  Tensor out = torch::stable::new_empty(tensor, {count}, ScalarType::Bool);
  bool* keep = mutable_data_of<bool>(out);
  if (!count) return out;
  Boxes boxes(0);
  by_dtype(tensor, [&](auto zero) {
    using T = decltype(zero);
    boxes = Boxes::read(data_of<T>(tensor), count);
  });
  Grid grid(boxes);
  int32_t near[vantage::kLanes];
  double values[vantage::kLanes];
  for (int64_t i = 0; i < count; ++i) {
    keep[i] = true;
    if (std::isnan(boxes.area[i])) continue;
    int found = 0;
    const auto suppressed = [&] {
      vantage::ratios(boxes, i, boxes, near, found, false, values);
      const bool any = std::any_of(values, values + found, [&](double value) { return value > threshold; });
      found = 0;
      return any;
    };
    bool removed = grid.any(i, [&](int32_t j) {
      if ((label && label[j] != label[i]) || !vantage::may_overlap(boxes, i, boxes, j)) return false;
      near[found++] = j;
      return found == vantage::kLanes && suppressed();
    });
    if (!removed && found) removed = suppressed();
    keep[i] = !removed;
    if (!removed) grid.insert(i);
  }
  return out;
}

Tensor points_in(const Tensor& points_in, const Tensor& boxes_in) {
  check(boxes_in, "points_in_rotated_boxes_native", "boxes");
  check(points_in, "points_in_rotated_boxes_native", "points", 2);
  STD_TORCH_CHECK(points_in.scalar_type() == boxes_in.scalar_type(),
                  "points_in_rotated_boxes_native: points and boxes differ in dtype");
  const Tensor points = torch::stable::contiguous(points_in), tensor = torch::stable::contiguous(boxes_in);
  const int64_t rows = points.size(0), count = tensor.size(0);
  Tensor out = torch::stable::new_empty(tensor, {rows, count}, ScalarType::Bool);
  if (!rows || !count) return out;
  by_dtype(tensor, [&](auto zero) {
    using T = decltype(zero);
    const Boxes boxes = Boxes::read(data_of<T>(tensor), count);
    const T* point = data_of<T>(points);
    auto* inside = reinterpret_cast<uint8_t*>(mutable_data_of<bool>(out));
    const int64_t grain = std::max<int64_t>(1, 20000 / count);
    torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const double x = double(point[2 * i]), y = double(point[2 * i + 1]);
        uint8_t* row = inside + i * count;
        for (int64_t j = 0; j < count; ++j) {
          const double dx = x - boxes.cx[j], dy = y - boxes.cy[j];
          const double along = boxes.cos[j] * dx + boxes.sin[j] * dy, across = boxes.cos[j] * dy - boxes.sin[j] * dx;
          row[j] = uint8_t(std::abs(along) <= boxes.half_w[j]) & uint8_t(std::abs(across) <= boxes.half_h[j]);
        }
      }
    });
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vantage, CPU, library) {
  library.impl("rotated_iou_native", TORCH_BOX(&iou));
  library.impl("rotated_iou_native_backward", TORCH_BOX(&iou_backward));
  library.impl("rotated_nms_native", TORCH_BOX(&nms));
  library.impl("points_in_rotated_boxes_native", TORCH_BOX(&points_in));
}
