// Area of the intersection of two rotated boxes, many at once, and its derivatives.
//
// In the frame of box A, where A is |x| <= a, |y| <= b, the area of A and B in common is a sum over the four edges of B:
//   I = sum over edges of  integral over x of clamp(y(x), -b, b),  x along the edge clamped to [-a, a]
// since at every x the height in common is clamp(top of B) - clamp(bottom of B). Each term is continuous in the boxes
// and at most |A| / 2, so that coincident and nearly parallel edges, where lists of intersection points go wrong, need
// no special case: the error is a few roundings of double, relative to A. Boxes of float32 are exact in double.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#ifdef __CUDACC__
#define VANTAGE_ANYWHERE __host__ __device__
#else
#define VANTAGE_ANYWHERE
#endif

namespace vantage {

constexpr double kSmallestUnion = 1e-30;  // below it boxes have no area to speak of: their IoU is 0
constexpr double kRounding = 1e-14;       // of A's area: what is in common below that is rounding, the boxes are apart
constexpr int kLanes = 16;                // pairs that are computed together: loops over them become vectors

// std::min and std::max are functions of the host to nvcc
VANTAGE_ANYWHERE inline double smaller(double a, double b) { return b < a ? b : a; }
VANTAGE_ANYWHERE inline double larger(double a, double b) { return a < b ? b : a; }
VANTAGE_ANYWHERE inline double clamped(double value, double low, double high) { return smaller(larger(value, low), high); }

// One edge's term
VANTAGE_ANYWHERE inline double edge_integral(double x0, double y0, double x1, double y1, double a, double b) {
  const double from = clamped(x0, -a, a), to = clamped(x1, -a, a);
  const double dx = x1 - x0, dy = y1 - y0;
  const double per_x = 1.0 / (dx == 0.0 ? 1.0 : dx);
  const double start = y0 + clamped((from - x0) * per_x, 0.0, 1.0) * dy;
  const double end = y1 - clamped((x1 - to) * per_x, 0.0, 1.0) * dy;
  // mean of clamp(y) over a straight line from start to end: that of its ends, and more of the end where it stays longer
  const double first = clamped(start, -b, b), last = clamped(end, -b, b), rise = end - start;
  const double per_y = 1.0 / (rise == 0.0 ? 1.0 : rise);
  const double before = clamped((first - start) * per_y, 0.0, 1.0), after = clamped((end - last) * per_y, 0.0, 1.0);
  const double mean = 0.5 * ((first + last) + (last - first) * (after - before));
  return (from - to) * mean;  // corners run from x towards y, so that the area is minus the integral of y dx
}

// B as a frame around its centre: half sides as vectors, in any frame
struct Halves {
  double ux, uy, vx, vy;  // along w, along h
};

VANTAGE_ANYWHERE inline double intersection(double x, double y, const Halves& h, double a, double b) {
  const double x0 = x - h.ux - h.vx, x1 = x + h.ux - h.vx, x2 = x + h.ux + h.vx, x3 = x - h.ux + h.vx;
  const double y0 = y - h.uy - h.vy, y1 = y + h.uy - h.vy, y2 = y + h.uy + h.vy, y3 = y - h.uy + h.vy;
  const double area = edge_integral(x0, y0, x1, y1, a, b) + edge_integral(x1, y1, x2, y2, a, b) +
                      edge_integral(x2, y2, x3, y3, a, b) + edge_integral(x3, y3, x0, y0, a, b);
  return area > kRounding * 4.0 * a * b ? area : 0.0;
}

// IoU or IoF (over A); NaN where an area is NaN
VANTAGE_ANYWHERE inline double ratio(double common, double area_a, double area_b, bool is_iof) {
  const double denominator = is_iof ? area_a + 0.0 * area_b : area_a + area_b - common;
  return denominator <= kSmallestUnion ? 0.0 : smaller(common / denominator, 1.0) + 0.0 * denominator;
}

// Boxes as columns, with what depends on one box alone
struct Boxes {
  std::vector<double> cx, cy, cos, sin, half_w, half_h, ux, uy, vx, vy, radius, area;

  explicit Boxes(int64_t count) {
    for (auto* column : {&cx, &cy, &cos, &sin, &half_w, &half_h, &ux, &uy, &vx, &vy, &radius, &area})
      column->resize(size_t(count));
  }
  int64_t size() const { return int64_t(cx.size()); }

  template <typename T>
  static Boxes read(const T* data, int64_t count) {
    Boxes boxes(count);
    for (int64_t i = 0; i < count; ++i, data += 5) boxes.set(i, data[0], data[1], data[2], data[3], data[4]);
    return boxes;
  }

  // A side below 0 counts as 0. A box that is not finite gets the area NaN, and its ratios are NaN.
  void set(int64_t i, double x, double y, double w, double h, double angle) {
    cx[i] = x, cy[i] = y;
    cos[i] = std::cos(angle), sin[i] = std::sin(angle);
    half_w[i] = 0.5 * std::max(w, 0.0), half_h[i] = 0.5 * std::max(h, 0.0);
    ux[i] = half_w[i] * cos[i], uy[i] = half_w[i] * sin[i];
    vx[i] = -half_h[i] * sin[i], vy[i] = half_h[i] * cos[i];
    const double poison = 0.0 * (x + y + w + h + angle);
    radius[i] = std::sqrt(half_w[i] * half_w[i] + half_h[i] * half_h[i]) + poison;
    area[i] = 4.0 * half_w[i] * half_h[i] + poison;
  }
};

// True unless the circumscribed circles are apart; true with NaN
inline bool may_overlap(const Boxes& a, int64_t i, const Boxes& b, int64_t j) {
  const double dx = b.cx[j] - a.cx[i], dy = b.cy[j] - a.cy[i], reach = a.radius[i] + b.radius[j];
  return !(dx * dx + dy * dy > reach * reach);
}

// Ratios of box i of `a` with `count` <= kLanes boxes of `b` at `index`
inline void ratios(const Boxes& a, int64_t i, const Boxes& b, const int32_t* index, int count, bool is_iof,
                   double* out) {
  double x[kLanes], y[kLanes], area[kLanes];
  double ux[kLanes], uy[kLanes], vx[kLanes], vy[kLanes];
  const double cos = a.cos[i], sin = a.sin[i], cx = a.cx[i], cy = a.cy[i];
  const double half_w = a.half_w[i], half_h = a.half_h[i], area_a = a.area[i];
  for (int lane = 0; lane < kLanes; ++lane) {
    const int64_t j = index[lane < count ? lane : 0];
    x[lane] = b.cx[j] - cx, y[lane] = b.cy[j] - cy, area[lane] = b.area[j];
    ux[lane] = b.ux[j], uy[lane] = b.uy[j], vx[lane] = b.vx[j], vy[lane] = b.vy[j];
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    const Halves turned = {cos * ux[lane] + sin * uy[lane], cos * uy[lane] - sin * ux[lane],
                           cos * vx[lane] + sin * vy[lane], cos * vy[lane] - sin * vx[lane]};
    const double common = intersection(cos * x[lane] + sin * y[lane], cos * y[lane] - sin * x[lane], turned, half_w, half_h);
    out[lane] = ratio(common, area_a, area[lane], is_iof);
  }
}

// Two boxes in the frame of the first: exact where the second equals it
struct Pair {
  double x, y, cos, sin;  // centre and direction of B in the frame of A
  double a, b, p, q;      // half sides of A and of B
  double cos_a, sin_a, area_a, area_b;

  template <typename T>
  VANTAGE_ANYWHERE Pair(const T* first, const T* second) {
    cos_a = std::cos(double(first[4])), sin_a = std::sin(double(first[4]));
    const double dx = double(second[0]) - double(first[0]), dy = double(second[1]) - double(first[1]);
    x = cos_a * dx + sin_a * dy, y = cos_a * dy - sin_a * dx;
    const double turn = double(second[4]) - double(first[4]);
    cos = std::cos(turn), sin = std::sin(turn);
    a = half(first[2]), b = half(first[3]), p = half(second[2]), q = half(second[3]);
    area_a = 4.0 * a * b + poison(first), area_b = 4.0 * p * q + poison(second);
  }
  VANTAGE_ANYWHERE static double half(double side) { return 0.5 * larger(side, 0.0); }
  template <typename T>
  VANTAGE_ANYWHERE static double poison(const T* box) {
    return 0.0 * (double(box[0]) + double(box[1]) + double(box[2]) + double(box[3]) + double(box[4]));
  }
  VANTAGE_ANYWHERE double intersection() const {
    return vantage::intersection(x, y, Halves{p * cos, p * sin, -q * sin, q * cos}, a, b);
  }
};

// Part of a line inside |x| <= a, |y| <= b: the range of t in point + t * direction, and a weight that is a half where
// the line lies on the border (the mean of the derivatives on both sides)
struct Inside {
  double from, to, weight = 1.0;

  VANTAGE_ANYWHERE Inside(double reach, double x, double y, double dir_x, double dir_y, double a, double b)
      : from(-reach), to(reach) {
    cut(x, dir_x, a);
    cut(y, dir_y, b);
  }
  VANTAGE_ANYWHERE double length() const { return weight * larger(to - from, 0.0); }
  VANTAGE_ANYWHERE double middle() const { return 0.5 * (from + to); }

 private:
  VANTAGE_ANYWHERE void cut(double at, double step, double limit) {
    if (step == 0.0) {
      if (std::abs(at) > limit) weight = 0.0;
      else if (std::abs(at) == limit) weight *= 0.5;
      return;
    }
    const double one = (-limit - at) / step, other = (limit - at) / step;
    from = larger(from, smaller(one, other));
    to = smaller(to, larger(one, other));
  }
};

// d ratio / d (first, second), times `grad`, added to both. The area in common grows with an edge that moves outwards by
// the length of it that lies inside the other box; what A does follows from B, since moving both changes nothing.
template <typename T>
VANTAGE_ANYWHERE void add_gradients(const T* first, const T* second, bool is_iof, double grad, double* grad_first, double* grad_second) {
  const Pair pair(first, second);
  const double common = pair.intersection();
  const double denominator = is_iof ? pair.area_a : pair.area_a + pair.area_b - common;
  if (denominator <= kSmallestUnion || common == 0.0) return;
  const double value = common / denominator;
  const double by_common = grad * (is_iof ? 1.0 : 1.0 + value) / denominator;
  const double by_area_a = -grad * value / denominator, by_area_b = is_iof ? 0.0 : by_area_a;

  double force_x = 0, force_y = 0, torque = 0, grow_b[2] = {0, 0}, grow_a[2] = {0, 0};
  double normal_x = pair.cos, normal_y = pair.sin;
  for (int edge = 0; edge < 4; ++edge) {  // of B in the frame of A: +w, +h, -w, -h
    const double offset = edge % 2 ? pair.q : pair.p, reach = edge % 2 ? pair.p : pair.q;
    const double dir_x = -normal_y, dir_y = normal_x;
    const Inside part(reach, pair.x + offset * normal_x, pair.y + offset * normal_y, dir_x, dir_y, pair.a, pair.b);
    const double length = part.length();
    force_x += length * normal_x, force_y += length * normal_y;
    torque -= length * part.middle();
    grow_b[edge % 2] += length;
    normal_x = dir_x, normal_y = dir_y;
  }
  const double x = -(pair.cos * pair.x + pair.sin * pair.y), y = pair.sin * pair.x - pair.cos * pair.y;
  normal_x = pair.cos, normal_y = -pair.sin;
  for (int edge = 0; edge < 4; ++edge) {  // of A in the frame of B
    const double offset = edge % 2 ? pair.b : pair.a, reach = edge % 2 ? pair.a : pair.b;
    const double dir_x = -normal_y, dir_y = normal_x;
    grow_a[edge % 2] +=
        Inside(reach, x + offset * normal_x, y + offset * normal_y, dir_x, dir_y, pair.p, pair.q).length();
    normal_x = dir_x, normal_y = dir_y;
  }
  const double move_x = by_common * (pair.cos_a * force_x - pair.sin_a * force_y);
  const double move_y = by_common * (pair.sin_a * force_x + pair.cos_a * force_y);
  grad_first[0] -= move_x, grad_first[1] -= move_y;
  grad_second[0] += move_x, grad_second[1] += move_y;
  const auto side = [&](const T* box, int column, double growth, double by_area, double other) {
    return double(box[column]) < 0.0 ? 0.0 : 0.5 * by_common * growth + 2.0 * by_area * other;
  };
  grad_first[2] += side(first, 2, grow_a[0], by_area_a, pair.b);
  grad_first[3] += side(first, 3, grow_a[1], by_area_a, pair.a);
  grad_second[2] += side(second, 2, grow_b[0], by_area_b, pair.q);
  grad_second[3] += side(second, 3, grow_b[1], by_area_b, pair.p);
  grad_first[4] += by_common * (pair.y * force_x - pair.x * force_y - torque);
  grad_second[4] += by_common * torque;
}

}  // namespace vantage
