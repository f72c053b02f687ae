// The ops of iou.cpp and roi_align.cpp for CUDA tensors: the same geometry (overlap.h), one thread per result.
// Every sum is of one thread and in one order, except RoI align's gradient, which adds to shared pixels atomically.
// The tests compile this file as C++ (VANTAGE_EMULATE): `over` becomes a loop and the ops attach to the CPU.
#include "overlap.h"

#include <optional>
#include <tuple>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#ifdef VANTAGE_EMULATE
#define __device__
#define DISPATCH_KEY CPU
#else
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#define DISPATCH_KEY CUDA
#endif

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

#ifdef VANTAGE_EMULATE
struct Place {
  explicit Place(const Tensor&) {}
  template <class Body>
  void over(int64_t count, const Body& body) const {
    for (int64_t index = 0; index < count; ++index) body(index);
  }
};
template <class T>
void add(T* target, T value) { *target += value; }
#else
template <class Body>
__global__ void run(int64_t count, Body body) {
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; index < count; index += step) body(index);
}

void check(cudaError_t error) {  // torch 2.10 has no macro for it
  STD_TORCH_CHECK(error == cudaSuccess, "rotated_boxes on CUDA: ", cudaGetErrorString(error));
}

// The current stream of a tensor's device
struct Place {
  explicit Place(const Tensor& on) : guard(on.get_device_index()) {
    const int device = on.get_device_index();
    check(cudaSetDevice(device));  // of the runtime that is linked in, beside torch's own
    void* current = nullptr;
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(device, &current) == AOTI_TORCH_SUCCESS,
                    "rotated_boxes: device ", device, " has no current stream");
    stream = static_cast<cudaStream_t>(current);
  }
  template <class Body>
  void over(int64_t count, const Body& body) const {
    if (count <= 0) return;
    const int64_t blocks = std::min<int64_t>((count + 127) / 128, 1 << 20);
    run<<<unsigned(blocks), 128, 0, stream>>>(count, body);
    check(cudaGetLastError());
  }
  torch::stable::accelerator::DeviceGuard guard;
  cudaStream_t stream;
};
template <class T>
__device__ void add(T* target, T value) { atomicAdd(target, value); }
#endif

void check_boxes(const Tensor& boxes, const char* op, int64_t columns = 5) {
  STD_TORCH_CHECK(boxes.dim() == 2 && boxes.size(1) == columns &&
                      (boxes.scalar_type() == ScalarType::Float || boxes.scalar_type() == ScalarType::Double),
                  op, ": rows of ", columns, " float32 or float64 are needed");
}
void check_pair(const Tensor& a, const Tensor& b, const char* op, int64_t columns = 5) {
  check_boxes(a, op, columns);
  check_boxes(b, op);
  STD_TORCH_CHECK(a.scalar_type() == b.scalar_type() && a.get_device_index() == b.get_device_index(), op,
                  ": both arguments must have one dtype and one device");
}
template <class T>
const T* data_of(const Tensor& tensor) { return static_cast<const T*>(tensor.const_data_ptr()); }
template <class T>
T* mutable_data_of(Tensor& tensor) { return static_cast<T*>(tensor.mutable_data_ptr()); }
template <class Run>
void by_dtype(const Tensor& tensor, const Run& run) {
  if (tensor.scalar_type() == ScalarType::Float) run(float{});
  else run(double{});
}

// Radius of the circumscribed circle
template <class T>
__device__ double radius(const T* box) {
  const double a = vantage::larger(box[2], 0.0), b = vantage::larger(box[3], 0.0);
  return 0.5 * sqrt(a * a + b * b);
}
// True unless the circumscribed circles are apart; true with NaN
template <class T>
__device__ bool may_overlap(const T* a, const T* b) {
  const double dx = double(b[0]) - double(a[0]), dy = double(b[1]) - double(a[1]), reach = radius(a) + radius(b);
  const double poison = vantage::Pair::poison(a) + vantage::Pair::poison(b);
  return !(dx * dx + dy * dy + poison > reach * reach);
}
template <class T>
__device__ double ratio_of(const T* a, const T* b, bool is_iof) {
  if (!may_overlap(a, b)) return 0.0;
  const vantage::Pair pair(a, b);
  return vantage::ratio(pair.intersection(), pair.area_a, pair.area_b, is_iof);
}

// The bodies of the kernels are structs: templates may not take lambdas across host and device without an extra flag.
template <class T>
struct Iou {
  const T *a, *b;
  T* out;
  int64_t columns;  // 0: aligned
  bool is_iof;
  __device__ void operator()(int64_t index) const {
    const int64_t i = columns ? index / columns : index, j = columns ? index % columns : index;
    out[index] = T(ratio_of(a + 5 * i, b + 5 * j, is_iof));
  }
};

Tensor iou(const Tensor& a_in, const Tensor& b_in, bool aligned, bool is_iof) {
  check_pair(a_in, b_in, "rotated_iou");
  const Tensor a = torch::stable::contiguous(a_in), b = torch::stable::contiguous(b_in);
  const int64_t rows = a.size(0), columns = b.size(0);
  STD_TORCH_CHECK(!aligned || rows == columns, "rotated_iou: aligned boxes differ in number");
  const std::vector<int64_t> sizes = aligned ? std::vector<int64_t>{rows} : std::vector<int64_t>{rows, columns};
  Tensor out = torch::stable::new_empty(a, sizes);
  const Place place(a);
  by_dtype(a, [&](auto zero) {
    using T = decltype(zero);
    place.over(out.numel(), Iou<T>{data_of<T>(a), data_of<T>(b), mutable_data_of<T>(out), aligned ? 0 : columns, is_iof});
  });
  return out;
}

// Gradient of box `index` of one side: of its pair, or summed over all boxes of the other side
template <class T>
struct IouGradient {
  const T *a, *b, *grad;
  T* out;
  int64_t columns, others;
  bool aligned, of_a, is_iof;
  __device__ void operator()(int64_t index) const {
    double sum[5] = {}, unused[5] = {};
    for (int64_t other = aligned ? index : 0; other < (aligned ? index + 1 : others); ++other) {
      const int64_t i = of_a ? index : other, j = of_a ? other : index;
      const double scale = double(grad[aligned ? index : i * columns + j]);
      if (scale == 0.0 || !may_overlap(a + 5 * i, b + 5 * j)) continue;
      vantage::add_gradients(a + 5 * i, b + 5 * j, is_iof, scale, of_a ? sum : unused, of_a ? unused : sum);
    }
    for (int k = 0; k < 5; ++k) out[5 * index + k] = T(sum[k]);
  }
};

std::tuple<Tensor, Tensor> iou_backward(const Tensor& grad_in, const Tensor& a_in, const Tensor& b_in, bool aligned,
                                        bool is_iof) {
  check_pair(a_in, b_in, "rotated_iou");
  const int64_t rows = a_in.size(0), columns = b_in.size(0);
  STD_TORCH_CHECK(grad_in.scalar_type() == a_in.scalar_type() && grad_in.numel() == (aligned ? rows : rows * columns),
                  "rotated_iou: grad is not that of the output");
  const Tensor grad = torch::stable::contiguous(grad_in), a = torch::stable::contiguous(a_in),
               b = torch::stable::contiguous(b_in);
  Tensor grad_a = torch::stable::new_empty(a, {rows, 5}), grad_b = torch::stable::new_empty(b, {columns, 5});
  const Place place(a);
  by_dtype(a, [&](auto zero) {
    using T = decltype(zero);
    IouGradient<T> body{data_of<T>(a), data_of<T>(b), data_of<T>(grad), mutable_data_of<T>(grad_a),
                        columns,       columns,       aligned,          true,
                        is_iof};
    place.over(rows, body);
    body.out = mutable_data_of<T>(grad_b), body.others = rows, body.of_a = false;
    place.over(columns, body);
  });
  return {grad_a, grad_b};
}

// NMS goes through the boxes, which come by falling score, in blocks of 64, in O(N) memory. Of a block that nothing
// earlier can remove from any more: which of its boxes remove which others of it (Within), which stay (Decide), and
// which later boxes those remove (Remove).
constexpr int64_t kBlock = 64;

template <class T>
struct Nms {
  const T* boxes;
  const int64_t* labels;  // or null
  double threshold;
  __device__ bool removes(int64_t winner, int64_t i) const {
    if (labels && labels[winner] != labels[i]) return false;
    return ratio_of(boxes + 5 * i, boxes + 5 * winner, false) > threshold;
  }
};
template <class T>
struct Within {
  Nms<T> nms;
  int64_t start, end;
  int64_t* winners;  // bit w of entry i: box start + w, if it stays, removes box start + i
  __device__ void operator()(int64_t i) const {
    uint64_t word = 0;
    for (int64_t w = 0; w < i && start + i < end; ++w) word |= uint64_t(nms.removes(start + w, start + i)) << w;
    winners[i] = int64_t(word);
  }
};
struct Decide {
  const int64_t* winners;
  bool* keep;
  int64_t start, end;
  __device__ void operator()(int64_t) const {
    uint64_t kept = 0;
    for (int64_t i = 0; start + i < end; ++i) {
      keep[start + i] = keep[start + i] && !(uint64_t(winners[i]) & kept);
      kept |= uint64_t(keep[start + i]) << i;
    }
  }
};
template <class T>
struct Remove {
  Nms<T> nms;
  bool* keep;
  int64_t start, end;
  __device__ void operator()(int64_t index) const {
    const int64_t i = end + index;
    for (int64_t w = start; w < end && keep[i]; ++w)
      if (keep[w] && nms.removes(w, i)) keep[i] = false;
  }
};
struct Fill {
  bool* keep;
  __device__ void operator()(int64_t index) const { keep[index] = true; }
};

Tensor nms(const Tensor& boxes_in, const std::optional<Tensor>& labels_in, double threshold) {
  check_boxes(boxes_in, "rotated_nms");
  const Tensor boxes = torch::stable::contiguous(boxes_in);
  const int64_t count = boxes.size(0);
  std::optional<Tensor> labels;
  if (labels_in) {
    STD_TORCH_CHECK(labels_in->dim() == 1 && labels_in->size(0) == count &&
                        labels_in->scalar_type() == ScalarType::Long &&
                        labels_in->get_device_index() == boxes.get_device_index(),
                    "rotated_nms: labels must be (N,) of int64 on the device of the boxes");
    labels = torch::stable::contiguous(*labels_in);
  }
  Tensor out = torch::stable::new_empty(boxes, {count}, ScalarType::Bool);
  Tensor words = torch::stable::new_empty(boxes, {kBlock}, ScalarType::Long);
  bool* keep = mutable_data_of<bool>(out);
  int64_t* winners = mutable_data_of<int64_t>(words);
  const Place place(boxes);
  place.over(count, Fill{keep});
  by_dtype(boxes, [&](auto zero) {
    using T = decltype(zero);
    const Nms<T> rule{data_of<T>(boxes), labels ? data_of<int64_t>(*labels) : nullptr, threshold};
    for (int64_t start = 0; start < count; start += kBlock) {
      const int64_t end = std::min(count, start + kBlock);
      place.over(kBlock, Within<T>{rule, start, end, winners});
      place.over(1, Decide{winners, keep, start, end});
      place.over(count - end, Remove<T>{rule, keep, start, end});
    }
  });
  return out;
}

template <class T>
struct PointsIn {
  const T *points, *boxes;
  bool* inside;
  int64_t count;  // of boxes
  __device__ void operator()(int64_t index) const {
    const T *point = points + 2 * (index / count), *box = boxes + 5 * (index % count);
    const double dx = double(point[0]) - double(box[0]), dy = double(point[1]) - double(box[1]);
    const double c = cos(double(box[4])), s = sin(double(box[4]));
    inside[index] = fabs(c * dx + s * dy) <= vantage::Pair::half(box[2]) &&
                    fabs(c * dy - s * dx) <= vantage::Pair::half(box[3]);
  }
};

Tensor points_in(const Tensor& points_in, const Tensor& boxes_in) {
  check_pair(points_in, boxes_in, "points_in_rotated_boxes", 2);
  const Tensor points = torch::stable::contiguous(points_in), boxes = torch::stable::contiguous(boxes_in);
  Tensor out = torch::stable::new_empty(boxes, {points.size(0), boxes.size(0)}, ScalarType::Bool);
  const Place place(boxes);
  by_dtype(boxes, [&](auto zero) {
    using T = decltype(zero);
    place.over(out.numel(),
               PointsIn<T>{data_of<T>(points), data_of<T>(boxes), mutable_data_of<bool>(out), boxes.size(0)});
  });
  return out;
}

// RoI align as in roi_align.cpp. Entry `index` of the (K, C, height, width) output: forward reads the map there,
// backward (`maps` set) adds to it. What the CPU refuses, a box of no image of the batch or one that would take more than
// kMaxSamples of the map's pixels, gives NaN and no gradient: a GPU cannot raise.
constexpr double kMaxSamples = 1 << 24;

template <class T>
struct RoiAlign {
  const T* features;   // forward
  T* values;           // the output, or its gradient
  T* maps;             // backward: gradient of the features
  const double* boxes;
  int64_t batch, channels, height, width, out_height, out_width, sampling_ratio;
  double spatial_scale;

  __device__ void operator()(int64_t index) const {
    const int64_t column = index % out_width, row = index / out_width % out_height;
    const int64_t channel = index / (out_width * out_height) % channels;
    const double* box = boxes + 6 * (index / (out_width * out_height * channels));
    const double w = box[3] * spatial_scale, h = box[4] * spatial_scale;
    const bool is_bounded = sampling_ratio > 0 || vantage::larger(w, 1.0) * vantage::larger(h, 1.0) < kMaxSamples;
    if (!(box[0] >= 0 && box[0] < double(batch) && is_bounded)) {
      if (!maps) values[index] = T(nan(""));
      return;
    }
    const int64_t plane = (int64_t(box[0]) * channels + channel) * height * width;
    const double cx = box[1] * spatial_scale - 0.5, cy = box[2] * spatial_scale - 0.5;
    const double c = cos(box[5]), s = sin(box[5]);
    const double bin_w = w / double(out_width), bin_h = h / double(out_height);
    const int64_t samples_x = samples(bin_w), samples_y = samples(bin_h);
    const double share = 1.0 / double(samples_x * samples_y);
    double sum = 0;
    for (int64_t i = 0; i < samples_y; ++i)
      for (int64_t j = 0; j < samples_x; ++j) {
        const double along = -0.5 * w + bin_w * (double(column) + (double(j) + 0.5) / double(samples_x));
        const double across = -0.5 * h + bin_h * (double(row) + (double(i) + 0.5) / double(samples_y));
        sum += sample(plane, cx + along * c - across * s, cy + along * s + across * c, share, index);
      }
    if (!maps) values[index] = T(sum);
  }
  __device__ int64_t samples(double bin) const {
    return sampling_ratio > 0 ? sampling_ratio : int64_t(vantage::larger(1.0, ceil(bin)));
  }
  __device__ double sample(int64_t plane, double x, double y, double share, int64_t index) const {
    if (!(x >= -1.0 && x <= double(width) && y >= -1.0 && y <= double(height))) return 0.0;  // nor what is NaN
    x = vantage::clamped(x, 0.0, double(width - 1)), y = vantage::clamped(y, 0.0, double(height - 1));
    const int64_t left = int64_t(x), top = int64_t(y);
    const int64_t right = left + 1 < width ? left + 1 : left, bottom = top + 1 < height ? top + 1 : top;
    const double fx = x - double(left), fy = y - double(top);
    const int64_t pixels[4] = {top * width + left, top * width + right, bottom * width + left, bottom * width + right};
    const double weights[4] = {(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy};
    double sum = 0;
    for (int k = 0; k < 4; ++k) {
      const double weight = share * weights[k];
      if (maps) add(maps + plane + pixels[k], T(weight * double(values[index])));
      else sum += weight * double(features[plane + pixels[k]]);
    }
    return sum;
  }
};

template <class T>
RoiAlign<T> roi_align_of(const std::vector<int64_t>& sizes, const Tensor& boxes, int64_t out_height, int64_t out_width,
                         double spatial_scale, int64_t sampling_ratio) {
  STD_TORCH_CHECK(sizes.size() == 4 && boxes.dim() == 2 && boxes.size(1) == 6 &&
                      boxes.scalar_type() == ScalarType::Double && out_height >= 1 && out_width >= 1 &&
                      sampling_ratio >= 0,
                  "rotated_roi_align: features (B, C, H, W), boxes (K, 6) of float64, a grid with a bin are needed");
  return {nullptr,  nullptr,   nullptr,  data_of<double>(boxes), sizes[0],       sizes[1],     sizes[2],
          sizes[3], out_height, out_width, sampling_ratio,         spatial_scale};
}

Tensor roi_align(const Tensor& features_in, const Tensor& boxes_in, int64_t out_height, int64_t out_width,
                 double spatial_scale, int64_t sampling_ratio) {
  const Tensor features = torch::stable::contiguous(features_in), boxes = torch::stable::contiguous(boxes_in);
  const std::vector<int64_t> sizes(features.sizes().begin(), features.sizes().end());
  STD_TORCH_CHECK(features.get_device_index() == boxes.get_device_index(), "rotated_roi_align: two devices");
  Tensor out = torch::stable::new_empty(features, {boxes.size(0), features.size(1), out_height, out_width});
  const Place place(features);
  by_dtype(features, [&](auto zero) {
    using T = decltype(zero);
    auto body = roi_align_of<T>(sizes, boxes, out_height, out_width, spatial_scale, sampling_ratio);
    body.features = data_of<T>(features), body.values = mutable_data_of<T>(out);
    place.over(out.numel(), body);
  });
  return out;
}

Tensor roi_align_backward(const Tensor& grad_in, const Tensor& boxes_in, std::vector<int64_t> sizes,
                          double spatial_scale, int64_t sampling_ratio) {
  Tensor grad = torch::stable::contiguous(grad_in);
  const Tensor boxes = torch::stable::contiguous(boxes_in);
  STD_TORCH_CHECK(sizes.size() == 4 && grad.dim() == 4 && grad.size(0) == boxes.size(0) && grad.size(1) == sizes[1],
                  "rotated_roi_align: grad is not that of the output");
  Tensor maps = torch::stable::new_zeros(grad, sizes);
  const Place place(grad);
  by_dtype(grad, [&](auto zero) {
    using T = decltype(zero);
    auto body = roi_align_of<T>(sizes, boxes, grad.size(2), grad.size(3), spatial_scale, sampling_ratio);
    body.values = static_cast<T*>(grad.data_ptr()), body.maps = mutable_data_of<T>(maps);
    place.over(grad.numel(), body);
  });
  return maps;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vantage, DISPATCH_KEY, library) {
  library.impl("rotated_iou_native", TORCH_BOX(&iou));
  library.impl("rotated_iou_native_backward", TORCH_BOX(&iou_backward));
  library.impl("rotated_nms_native", TORCH_BOX(&nms));
  library.impl("points_in_rotated_boxes_native", TORCH_BOX(&points_in));
  library.impl("rotated_roi_align_native", TORCH_BOX(&roi_align));
  library.impl("rotated_roi_align_native_backward", TORCH_BOX(&roi_align_backward));
}
