// vantage::rotated_roi_align_native and its backward on the CPU, for float32 and float64 features.
// Maps are read with channels last, so that one bilinear sample is four weighted rows of channels.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct Problem {
  int64_t batch, channels, height, width, out_height, out_width, sampling_ratio;
  double spatial_scale;
};

struct Tap {
  int64_t offset;  // of the pixel in its map, in pixels
  double weight;
};

// For every bin of one box, what to add up; `starts` has one entry more than there are bins
struct Taps {
  std::vector<Tap> taps;
  std::vector<int64_t> starts;

  // box: batch index, cx, cy, w, h, angle. Samples more than a pixel outside of the map count as zeros, nearer ones take
  // the border's value: as in torchvision's and detectron2's RoIAlign.
  void prepare(const double* box, const Problem& problem) {
    taps.clear();
    starts.assign(1, 0);
    // pixel i covers i .. i + 1, so that its value sits at i + 1/2
    const double cx = box[1] * problem.spatial_scale - 0.5, cy = box[2] * problem.spatial_scale - 0.5;
    const double w = box[3] * problem.spatial_scale, h = box[4] * problem.spatial_scale;
    const double cos = std::cos(box[5]), sin = std::sin(box[5]);
    const double bin_w = w / double(problem.out_width), bin_h = h / double(problem.out_height);
    const int64_t samples_x = samples(bin_w, problem), samples_y = samples(bin_h, problem);
    const double share = 1.0 / double(samples_x * samples_y);
    for (int64_t row = 0; row < problem.out_height; ++row)
      for (int64_t column = 0; column < problem.out_width; ++column) {
        for (int64_t i = 0; i < samples_y; ++i)
          for (int64_t j = 0; j < samples_x; ++j) {
            const double along = -0.5 * w + bin_w * (double(column) + (double(j) + 0.5) / double(samples_x));
            const double across = -0.5 * h + bin_h * (double(row) + (double(i) + 0.5) / double(samples_y));
            add(cx + along * cos - across * sin, cy + along * sin + across * cos, share, problem);
          }
        starts.push_back(int64_t(taps.size()));
      }
  }

 private:
  static int64_t samples(double bin, const Problem& problem) {
    return problem.sampling_ratio > 0 ? problem.sampling_ratio : std::max<int64_t>(1, int64_t(std::ceil(bin)));
  }
  void add(double x, double y, double share, const Problem& problem) {
    const int64_t width = problem.width, height = problem.height;
    if (!(x >= -1.0 && x <= double(width) && y >= -1.0 && y <= double(height))) return;  // nor what is NaN
    x = std::clamp(x, 0.0, double(width - 1)), y = std::clamp(y, 0.0, double(height - 1));
    const int64_t left = int64_t(x), top = int64_t(y);
    const int64_t right = std::min(left + 1, width - 1), bottom = std::min(top + 1, height - 1);
    const double fx = x - double(left), fy = y - double(top);
    taps.push_back({top * width + left, share * (1 - fx) * (1 - fy)});
    taps.push_back({top * width + right, share * fx * (1 - fy)});
    taps.push_back({bottom * width + left, share * (1 - fx) * fy});
    taps.push_back({bottom * width + right, share * fx * fy});
  }
};

constexpr double kMaxSamples = 1 << 24;  // of one box: more is a mistake in its size

Problem problem_of(std::vector<int64_t> sizes, const Tensor& boxes, int64_t out_height, int64_t out_width,
                   double spatial_scale, int64_t sampling_ratio) {
  const Problem problem = {sizes[0], sizes[1], sizes[2], sizes[3], out_height, out_width, sampling_ratio, spatial_scale};
  STD_TORCH_CHECK(boxes.dim() == 2 && boxes.size(1) == 6 && boxes.scalar_type() == ScalarType::Double,
                  "rotated_roi_align_native: boxes must be (K, 6) of float64");
  STD_TORCH_CHECK(out_height >= 1 && out_width >= 1 && sampling_ratio >= 0,
                  "rotated_roi_align_native: the output needs a bin and sampling_ratio must not be negative");
  const double* box = static_cast<const double*>(boxes.const_data_ptr());
  for (int64_t k = 0; k < boxes.size(0); ++k, box += 6) {
    STD_TORCH_CHECK(box[0] >= 0 && box[0] < double(problem.batch), "rotated_roi_align: box ", k, " belongs to image ",
                    box[0], " and there are ", problem.batch, "; column 0 is the image's index in the batch");
    const double across = box[4] * spatial_scale, along = box[3] * spatial_scale;
    STD_TORCH_CHECK(sampling_ratio > 0 || std::max(along, 1.0) * std::max(across, 1.0) < kMaxSamples,
                    "rotated_roi_align: box ", k, " covers ", along, " x ", across,
                    " pixels of the map; clip it, or set sampling_ratio");
  }
  return problem;
}

void check_features(const Tensor& features) {
  STD_TORCH_CHECK(features.dim() == 4 && features.size(2) >= 1 && features.size(3) >= 1 &&
                      (features.scalar_type() == ScalarType::Float || features.scalar_type() == ScalarType::Double),
                  "rotated_roi_align_native: features must be (B, C, H, W) of float32 or float64");
}

template <typename T>
void forward_boxes(const Problem& problem, const T* maps, const double* boxes, T* out, int64_t begin, int64_t end) {
  const int64_t channels = problem.channels, bins = problem.out_height * problem.out_width;
  std::vector<T> sums(static_cast<size_t>(bins * channels));
  Taps taps;
  for (int64_t k = begin; k < end; ++k) {
    taps.prepare(boxes + 6 * k, problem);
    const T* map = maps + int64_t(boxes[6 * k]) * problem.height * problem.width * channels;
    std::fill(sums.begin(), sums.end(), T(0));
    for (int64_t bin = 0; bin < bins; ++bin) {
      T* sum = sums.data() + bin * channels;
      for (int64_t t = taps.starts[bin]; t < taps.starts[bin + 1]; ++t) {
        const T weight = T(taps.taps[t].weight);
        const T* pixel = map + taps.taps[t].offset * channels;
        for (int64_t c = 0; c < channels; ++c) sum[c] += weight * pixel[c];
      }
    }
    T* target = out + k * channels * bins;
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t bin = 0; bin < bins; ++bin) target[c * bins + bin] = sums[bin * channels + c];
  }
}

// Channels [begin, end) of all boxes, in their order: threads share no pixel's channel
template <typename T>
void backward_channels(const Problem& problem, const T* grad, const double* boxes, int64_t count, T* maps,
                       int64_t begin, int64_t end) {
  const int64_t channels = problem.channels, bins = problem.out_height * problem.out_width, width = end - begin;
  std::vector<T> grads(static_cast<size_t>(bins * width));
  Taps taps;
  for (int64_t k = 0; k < count; ++k) {
    taps.prepare(boxes + 6 * k, problem);
    const T* source = grad + k * channels * bins;
    for (int64_t c = 0; c < width; ++c)
      for (int64_t bin = 0; bin < bins; ++bin) grads[bin * width + c] = source[(begin + c) * bins + bin];
    T* map = maps + int64_t(boxes[6 * k]) * problem.height * problem.width * channels + begin;
    for (int64_t bin = 0; bin < bins; ++bin) {
      const T* value = grads.data() + bin * width;
      for (int64_t t = taps.starts[bin]; t < taps.starts[bin + 1]; ++t) {
        const T weight = T(taps.taps[t].weight);
        T* pixel = map + taps.taps[t].offset * channels;
        for (int64_t c = 0; c < width; ++c) pixel[c] += weight * value[c];
      }
    }
  }
}

Tensor swap(const Tensor& tensor, int64_t a, int64_t b) { return torch::stable::transpose(tensor, a, b); }

Tensor forward(const Tensor& features, const Tensor& boxes_in, int64_t out_height, int64_t out_width,
               double spatial_scale, int64_t sampling_ratio) {
  check_features(features);
  const Tensor boxes = torch::stable::contiguous(boxes_in);
  const Problem problem = problem_of({features.size(0), features.size(1), features.size(2), features.size(3)}, boxes,
                                     out_height, out_width, spatial_scale, sampling_ratio);
  const int64_t count = boxes.size(0);
  Tensor out = torch::stable::new_empty(features, {count, problem.channels, out_height, out_width});
  if (!count || !problem.channels) return out;
  const Tensor maps = torch::stable::contiguous(swap(swap(features, 1, 2), 2, 3));
  const auto* box = static_cast<const double*>(boxes.const_data_ptr());
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const T* data = static_cast<const T*>(maps.const_data_ptr());
    T* target = static_cast<T*>(out.mutable_data_ptr());
    torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      forward_boxes(problem, data, box, target, begin, end);
    });
  };
  if (features.scalar_type() == ScalarType::Float) run(float{});
  else run(double{});
  return out;
}

Tensor backward(const Tensor& grad_in, const Tensor& boxes_in, std::vector<int64_t> sizes, double spatial_scale,
                int64_t sampling_ratio) {
  check_features(grad_in);
  STD_TORCH_CHECK(sizes.size() == 4, "rotated_roi_align_native_backward: sizes are those of the features");
  const Tensor grad = torch::stable::contiguous(grad_in), boxes = torch::stable::contiguous(boxes_in);
  const Problem problem = problem_of(sizes, boxes, grad.size(2), grad.size(3), spatial_scale, sampling_ratio);
  STD_TORCH_CHECK(grad.size(0) == boxes.size(0) && grad.size(1) == problem.channels,
                  "rotated_roi_align_native_backward: grad is not that of the output");
  Tensor maps = torch::stable::new_zeros(grad, {problem.batch, problem.height, problem.width, problem.channels});
  const auto* box = static_cast<const double*>(boxes.const_data_ptr());
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const T* source = static_cast<const T*>(grad.const_data_ptr());
    T* data = static_cast<T*>(maps.mutable_data_ptr());
    torch::stable::parallel_for(0, problem.channels, 16, [&](int64_t begin, int64_t end) {
      backward_channels(problem, source, box, boxes.size(0), data, begin, end);
    });
  };
  if (grad.scalar_type() == ScalarType::Float) run(float{});
  else run(double{});
  return torch::stable::contiguous(swap(swap(maps, 2, 3), 1, 2));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vantage, CPU, library) {
  library.impl("rotated_roi_align_native", TORCH_BOX(&forward));
  library.impl("rotated_roi_align_native_backward", TORCH_BOX(&backward));
}
