// Building blocks of the fast path (no stride, no causal axis), vectorised across neighbouring queries of a map row.
//
// A map row is packed as [dim][column]; lane x of a vector is the query at column x, and its key at column offset o lies
// in the same lane of the vector loaded o columns further on. So neither scores nor outputs need a horizontal sum.
// Columns of keys are continued over the border (see `continued`), rows are redirected by pointer.
#pragma once

#include <cstdlib>
#include <initializer_list>
#include <new>
#include <vector>

#include "geometry.h"
#include "simd.h"

namespace vantage::VANTAGE_WIDTH {

// Memory of one thread, kept between calls: fresh pages would cost more than the arithmetic on small maps
class Scratch {
 public:
  ~Scratch() { std::free(data_); }
  // Room for `count` floats, aligned to a cache line; forgets what was there
  float* reserve(int64_t count) {
#ifdef VANTAGE_FRESH_SCRATCH  // for sanitizers: nothing behind the last float
    capacity_ = 0;
#endif
    if (count > capacity_) {
      std::free(data_);
      capacity_ = 0;
      data_ = static_cast<float*>(std::aligned_alloc(64, size_t(round_up(count * 4, 64))));
      if (!data_) throw std::bad_alloc();
      capacity_ = count;
    }
    return data_;
  }
  // Gives back what only a rare large call needs
  void trim() {
    if (capacity_ > kKept) {
      std::free(data_);
      data_ = nullptr;
      capacity_ = 0;
    }
  }
  static Scratch& of_thread() {
    static thread_local Scratch scratch;
    return scratch;
  }

 private:
  static constexpr int64_t kKept = int64_t(16) << 20;  // floats
  float* data_ = nullptr;
  int64_t capacity_ = 0;
};

// Rows whose distance is a multiple of a large power of two fall into few sets of the cache: keep it an odd number of lines
static inline int64_t leading_dim(int64_t columns) {
  const int64_t lines = round_up(columns, 16) / 16;
  return (lines % 2 ? lines : lines + 1) * 16;
}

// Layout of the packed maps of a unit
struct Layout {
  int64_t kt, kh, kw, volume;  // kernel sizes and their product
  int64_t vectors;             // vectors of queries per row
  int64_t key_vectors;         // vectors of continued key columns per row
  int64_t key_ld;              // of packed keys and values
  int64_t guard;               // zero columns left of packed queries and probabilities in the backward pass
  int64_t guarded_ld;          // of those
  int64_t dim, padded_dim;

  // Vector of window offset (ot, oy, 0) among the scores of a query
  int64_t score_at(int64_t ot, int64_t oy) const { return (ot * kh + oy) * kw; }

  // Sizes hold for the longest residue class
  explicit Layout(const Shape& shape) {
    kt = shape.axes[0].kernel, kh = shape.axes[1].kernel, kw = shape.axes[2].kernel;
    volume = kt * kh * kw;
    const int64_t width = shape.axes[2].class_length(0);
    vectors = round_up(width, kLanes) / kLanes;
    key_vectors = round_up(width + kw - 1, kLanes) / kLanes;
    key_ld = leading_dim(std::max(vectors * kLanes + kw - 1, key_vectors * kLanes));
    guard = round_up(kw - 1, 16);
    guarded_ld = leading_dim(guard + key_vectors * kLanes);
    dim = shape.dim;
    padded_dim = round_up(dim, 4);
  }
};

// Packed rows of keys and values that are held at a time. Along one frame the rows that a group of query rows needs are
// neighbours and move on, so a ring of as many slots as rows are needed holds them in the cache; with several frames all
// rows of the unit are held.
struct Ring {
  int64_t rows, slots;

  Ring(const Shape& shape, int64_t needed) {
    const int64_t frames = shape.axes[0].class_length(0), height = shape.axes[1].class_length(0);
    rows = frames == 1 ? std::min(needed, height) : height;
    slots = frames * rows;
  }
  int64_t slot(int64_t t, int64_t y) const { return t * rows + y % rows; }
};

// Rows of tokens to be read or written soon. Tokens of a head lie apart, in a pattern that no hardware prefetcher
// follows, so their cache lines are asked for by hand, a few at a time between pieces of arithmetic.
class Upcoming {
 public:
  void clear() { rows_.clear(), lines_ = row_ = column_ = 0; }
  template <typename T>
  void add(const T* row, int64_t step, int64_t columns, int64_t dim) {
    rows_.push_back({reinterpret_cast<const char*>(row), step * int64_t(sizeof(T)), columns, dim * int64_t(sizeof(T))});
    lines_ += columns;
  }
  // Tokens to fetch per call so that `calls` calls fetch all
  int64_t share(int64_t calls) const { return (lines_ + calls - 1) / calls; }
  void fetch(int64_t tokens) {
    for (; tokens > 0 && row_ < rows_.size(); --tokens) {
      const Row& row = rows_[row_];
      const char* token = row.data + column_ * row.step;
      for (int64_t byte = 0; byte < row.bytes; byte += 64) __builtin_prefetch(token + byte, 0, 2);
      if (++column_ == row.columns) column_ = 0, ++row_;
    }
  }

 private:
  struct Row {
    const char* data;
    int64_t step, columns, bytes;
  };
  std::vector<Row> rows_;
  int64_t lines_ = 0, column_ = 0;
  size_t row_ = 0;
};

// Adds the rows that a group of query rows will read: of keys and values those that `packed` does not hold (all if
// null), and its own of `own`
template <typename T>
static void announce(const Shape& shape, const Unit& unit, int64_t group, int64_t group_rows, const Ring& ring,
                     const std::vector<int64_t>* packed, const View<const T>& k, const View<const T>& v,
                     std::initializer_list<const View<const T>*> own, Upcoming& upcoming) {
  const Axis &at = shape.axes[0], &ay = shape.axes[1];
  const int64_t height = unit.n[1], groups_per_frame = (height + group_rows - 1) / group_rows;
  const int64_t t = group / groups_per_frame, y0 = group % groups_per_frame * group_rows;
  const int64_t rows = std::min(group_rows, height - y0), step_x = shape.axes[2].dilation;
  const auto add = [&](const View<const T>& view, int64_t row_t, int64_t row_y) {
    upcoming.add(unit.row(view, shape, row_t, row_y), view.axis[2] * step_x, unit.n[2], shape.dim);
  };
  for (int64_t ot = 0; ot < at.kernel; ++ot)
    for (int64_t p = 0; p < ay.kernel + rows - 1; ++p) {
      const int64_t key_t = continued(t + ot - at.left(), unit.n[0], at.kernel);
      const int64_t key_y = continued(y0 + p - ay.left(), height, ay.kernel);
      if (packed && (*packed)[ring.slot(key_t, key_y)] == key_y) continue;
      add(k, key_t, key_y);
      add(v, key_t, key_y);
    }
  for (int64_t r = 0; r < rows; ++r)
    for (const View<const T>* view : own) add(*view, t, y0 + r);
}

// src (columns, dim) with `step` elements between columns -> dst[d * ld + column] = factor * src, zeros to a full vector
template <typename T>
static void pack_row(const T* src, int64_t step, int64_t columns, const Layout& layout, float factor, float* dst,
                     int64_t ld) {
  for (int64_t x = 0; x < layout.vectors * kLanes; x += kLanes) {
    const int64_t count = std::min<int64_t>(std::max<int64_t>(columns - x, 0), kLanes);
    for (int64_t d = 0; d < layout.dim; d += kLanes) {
      const int64_t dims = std::min<int64_t>(layout.dim - d, kLanes);
      Vec block[kLanes];
      if (count == kLanes && dims == kLanes) {
#pragma GCC unroll 16
        for (int64_t i = 0; i < kLanes; ++i) block[i] = load_whole(src + (x + i) * step + d);
        transpose(block);
#pragma GCC unroll 16
        for (int64_t i = 0; i < kLanes; ++i) store(dst + (d + i) * ld + x, block[i] * factor);
        continue;
      }
      for (int64_t i = 0; i < kLanes; ++i) block[i] = i < count ? load_part(src + (x + i) * step + d, dims) : Vec{};
      transpose(block);
      for (int64_t i = 0; i < dims; ++i) store(dst + (d + i) * ld + x, block[i] * factor);
    }
  }
  for (int64_t d = layout.dim; d < layout.padded_dim; ++d)
    std::memset(dst + d * ld, 0, size_t(layout.vectors * kLanes) * 4);
}

// A row of keys or values: packed at column `left`, then continued over both borders, then finite to the end
template <typename T>
static void pack_key_row(const T* src, int64_t step, int64_t columns, const Layout& layout, float* dst) {
  const int64_t left = layout.kw / 2, right = layout.kw - 1 - left, ld = layout.key_ld;
  pack_row(src, step, columns, layout, 1.0f, dst + left, ld);
  for (int64_t d = 0; d < layout.padded_dim; ++d) {
    float* row = dst + d * ld;
    for (int64_t c = 0; c < left; ++c) row[c] = row[c + layout.kw];
    for (int64_t c = left + columns; c < left + columns + right; ++c) row[c] = row[c - layout.kw];
    for (int64_t c = std::max(left + columns + right, left + layout.vectors * kLanes); c < ld; ++c) row[c] = 0.0f;
  }
}

// [dim][lane] -> rows of T: out[lane * step + d], `count` lanes
template <typename T>
static void unpack(const float* src, int64_t ld, int64_t count, int64_t dim, Vec factor, T* out, int64_t step) {
  for (int64_t d = 0; d < dim; d += kLanes) {
    const int64_t dims = std::min<int64_t>(dim - d, kLanes);
    Vec block[kLanes];
    if (count == kLanes && dims == kLanes) {
#pragma GCC unroll 16
      for (int64_t i = 0; i < kLanes; ++i) block[i] = load(src + (d + i) * ld) * factor;
      transpose(block);
#pragma GCC unroll 16
      for (int64_t i = 0; i < kLanes; ++i) store_part(out + i * step + d, block[i], kLanes);
      continue;
    }
    for (int64_t i = 0; i < kLanes; ++i) block[i] = i < dims ? load(src + (d + i) * ld) * factor : Vec{};
    transpose(block);
    for (int64_t i = 0; i < count; ++i) store_part(out + i * step + d, block[i], dims);
  }
}

// scores[r][o] = sum_d q[r][d] * key[d][o]: R query rows by O column offsets in registers
template <int R, int O>
static void score_block(const float* q, int64_t q_row, int64_t q_ld, const float* key, int64_t key_ld, int64_t dim,
                        float* scores, int64_t score_row, int64_t score_offset) {
  Vec acc[R][O];
#pragma GCC unroll 3
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int o = 0; o < O; ++o) acc[r][o] = Vec{};
  for (int64_t d = 0; d < dim; ++d) {
    Vec query[R];
#pragma GCC unroll 3
    for (int r = 0; r < R; ++r) query[r] = load(q + r * q_row + d * q_ld);
#pragma GCC unroll 8
    for (int o = 0; o < O; ++o) {
      Vec k = load(key + d * key_ld + o);
      if constexpr (R > 1) keep(k);
#pragma GCC unroll 3
      for (int r = 0; r < R; ++r) acc[r][o] += query[r] * k;
    }
  }
#pragma GCC unroll 3
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int o = 0; o < O; ++o) store(scores + r * score_row + o * score_offset, acc[r][o]);
}

// acc[r][d] += sum_i sum_o weights[r][i][o] * rows[i][d][column + o * step]: R rows by D dims in registers.
// Row r has weights for first + i <= r < first + i + window only.
struct MixArguments {
  const float* weights;
  int64_t weight_row, weight_outer, weight_offset;  // strides along r, i, o
  const float* const* rows;
  int64_t outer, offsets;
  int64_t column, ld, step;
  float* const* acc;
  int64_t acc_column, acc_ld;
  int64_t first, window;
};
// One i, for the rows Low <= r < High
template <int R, int D, int Low, int High>
__attribute__((always_inline)) static inline void mix_outer(const MixArguments& a, const float* weight,
                                                            const float* value, Vec (&acc)[R][D]) {
  for (int64_t o = 0; o < a.offsets; ++o) {
    Vec w[R];
#pragma GCC unroll 3
    for (int r = Low; r < High; ++r) w[r] = load(weight + r * a.weight_row);
#pragma GCC unroll 8
    for (int d = 0; d < D; ++d) {
      Vec v = load(value + d * a.ld);
      if constexpr (High - Low > 1) keep(v);
#pragma GCC unroll 3
      for (int r = Low; r < High; ++r) acc[r][d] += w[r] * v;
    }
    weight += a.weight_offset;
    value += a.step;
  }
}
template <int R, int D>
static void mix_block(const MixArguments& a, int64_t d0) {
  Vec acc[R][D];
#pragma GCC unroll 3
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int d = 0; d < D; ++d) acc[r][d] = load(a.acc[r] + (d0 + d) * a.acc_ld + a.acc_column);
  for (int64_t i = 0; i < a.outer; ++i) {
    const float* weight = a.weights + i * a.weight_outer;
    const float* value = a.rows[i] + d0 * a.ld + a.column;
    const int64_t low = std::max<int64_t>(0, a.first + i), high = std::min<int64_t>(R, a.first + i + a.window);
    if (low == 0 && high == R)
      mix_outer<R, D, 0, R>(a, weight, value, acc);
    else if constexpr (R == 2)
      low == 0 ? mix_outer<R, D, 0, 1>(a, weight, value, acc) : mix_outer<R, D, 1, 2>(a, weight, value, acc);
    else if constexpr (R == 3) {
      if (low == 0)
        high == 2 ? mix_outer<R, D, 0, 2>(a, weight, value, acc) : mix_outer<R, D, 0, 1>(a, weight, value, acc);
      else if (low == 2)
        mix_outer<R, D, 2, 3>(a, weight, value, acc);
      else
        high == 3 ? mix_outer<R, D, 1, 3>(a, weight, value, acc) : mix_outer<R, D, 1, 2>(a, weight, value, acc);
    }
  }
#pragma GCC unroll 3
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int d = 0; d < D; ++d) store(a.acc[r] + (d0 + d) * a.acc_ld + a.acc_column, acc[r][d]);
}

template <int R>
static void mix_rows(const MixArguments& a, int64_t dim) {
  int64_t d = 0;
  for (; d + kMaxDims <= dim; d += kMaxDims) mix_block<R, kMaxDims>(a, d);
  for (; d < dim; d += 4) mix_block<R, 4>(a, d);  // dim is padded to a multiple of 4
}
static inline void mix(int64_t rows, const MixArguments& a, int64_t dim) {
  if (rows == 1) return mix_rows<1>(a, dim);
  if (rows == 2) return mix_rows<2>(a, dim);
  if constexpr (kMaxRows >= 3) mix_rows<3>(a, dim);
}

template <int R, int O>
static void score_row(int64_t width, const float* q, int64_t q_row, int64_t q_ld, const float* key, int64_t key_ld,
                      int64_t dim, float* scores, int64_t score_stride, int64_t score_offset) {
  if constexpr (O > 1) {
    if (width < O)
      return score_row<R, O - 1>(width, q, q_row, q_ld, key, key_ld, dim, scores, score_stride, score_offset);
  }
  score_block<R, O>(q, q_row, q_ld, key, key_ld, dim, scores, score_stride, score_offset);
}

// All `kw` offsets of one key row for `rows` query rows, in blocks of nearly equal size
static inline void score(int64_t rows, int64_t kw, const float* q, int64_t q_row, int64_t q_ld, const float* key,
                         int64_t key_ld, int64_t dim, float* scores, int64_t score_stride, int64_t score_offset) {
  const int64_t blocks = (kw + kMaxOffsets - 1) / kMaxOffsets;
  for (int64_t b = 0, o = 0; b < blocks; ++b) {
    const int64_t width = (kw - o) / (blocks - b);
    float* out = scores + o * score_offset;
    if (rows == 1)
      score_row<1, kMaxOffsets>(width, q, q_row, q_ld, key + o, key_ld, dim, out, score_stride, score_offset);
    else if (rows == 2)
      score_row<2, kMaxOffsets>(width, q, q_row, q_ld, key + o, key_ld, dim, out, score_stride, score_offset);
    else if constexpr (kMaxRows >= 3)
      score_row<3, kMaxOffsets>(width, q, q_row, q_ld, key + o, key_ld, dim, out, score_stride, score_offset);
    o += width;
  }
}

// The bias table of a head, one vector per (row of the table, column offset, vector of queries), in units of log 2.
// Of queries near a border the continued columns stand for other offsets.
static inline int64_t bias_column(int64_t x, int64_t offset, int64_t width, int64_t kw) {
  const int64_t key = continued(x + offset - kw / 2, width, kw);
  return key - x + kw - 1;
}
static inline void expand_bias(const float* table, const Shape& shape, int64_t width, const Layout& layout, float factor,
                               float* expanded) {
  const int64_t columns = shape.table_columns(), lanes = layout.vectors * kLanes;
  for (int64_t row = 0; row < shape.table_rows(); ++row)
    for (int64_t o = 0; o < layout.kw; ++o)
      for (int64_t x = 0; x < lanes; ++x)
        expanded[(row * layout.kw + o) * lanes + x] =
            x < width ? table[row * columns + bias_column(x, o, width, layout.kw)] * factor : 0.0f;
}

// Row of the bias table for query row (t, y) and window offsets (ot, oy)
static inline int64_t bias_row(const Shape& shape, const Unit& unit, int64_t t, int64_t y, int64_t ot, int64_t oy) {
  const Axis &at = shape.axes[0], &ay = shape.axes[1];
  const int64_t dt = continued(t + ot - at.left(), unit.n[0], at.kernel) - t + at.kernel - 1;
  const int64_t dy = continued(y + oy - ay.left(), unit.n[1], ay.kernel) - y + ay.kernel - 1;
  return dt * (2 * ay.kernel - 1) + dy;
}

// How a call is cut into tasks: each unit's row groups (up to `rows` query rows of one frame) into `chunks` ranges
struct Split {
  int64_t units, chunks;

  Split(const Shape& shape, int64_t rows, int64_t threads) {
    units = Unit::count(shape);
    const int64_t groups = shape.axes[0].class_length(0) * ((shape.axes[1].class_length(0) + rows - 1) / rows);
    const int64_t wanted = units >= 2 * threads ? 1 : (4 * threads + units - 1) / units;
    chunks = threads == 1 ? 1 : std::max<int64_t>(1, std::min(wanted, groups / 2));
  }
};

}  // namespace vantage::VANTAGE_WIDTH
