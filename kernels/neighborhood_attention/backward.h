// Backward pass of the fast path. With P = exp(S - lse) and delta_i = grad_out_i . out_i - grad_lse_i:
//   dS = P * (grad_out . v - delta)    dQ = scale dS K    dK = scale dS^T Q    dV = P^T grad_out    dbias += dS
// A few query rows at a time: their P and dS stay in the cache, never those of the whole map.
#pragma once

#include "forward.h"

namespace vantage::VANTAGE_WIDTH {

// Floats of the packed gradients of keys and values of one unit
static inline int64_t gradient_size(const Shape& shape) {
  const Layout layout(shape);
  return 2 * shape.axes[0].class_length(0) * shape.axes[1].class_length(0) * layout.padded_dim * layout.key_ld;
}

// Query rows handled at once: enough to amortise the accumulators of keys and values, within half a megabyte of P and dS
static inline int64_t backward_rows(const Shape& shape) {
  const Layout layout(shape);
  const int64_t fitting = (int64_t(1) << 17) / (2 * layout.volume * layout.guarded_ld);
  return std::max<int64_t>(kMaxRows, std::min<int64_t>(4 * kMaxRows, fitting / kMaxRows * kMaxRows));
}

// Adds the continued columns to those they stand for, sums the chunks, and stores gradients of keys and values
template <typename T>
static void store_key_gradients(const BackwardCall<T>& call, const Unit& unit, const Layout& layout, float* gradients,
                                int64_t chunks, int64_t chunk_size) {
  const int64_t rows = unit.n[0] * unit.n[1], width = unit.n[2], left = layout.kw / 2, ld = layout.key_ld;
  const int64_t row_size = layout.padded_dim * ld, step_x = call.shape.axes[2].dilation;
  const int64_t half = call.shape.axes[0].class_length(0) * call.shape.axes[1].class_length(0) * row_size;
  for (int which = 0; which < 2; ++which) {
    const View<T>& view = which ? call.grad_v : call.grad_k;
    // packed queries carry scale * log2(e)
    const Vec factor = splat(which ? 1.0f : kLn2);
    Upcoming upcoming;
    for (int64_t row = 0; row < rows; ++row) {
      float* packed = gradients + which * half + row * row_size;
      for (int64_t chunk = 1; chunk < chunks; ++chunk)
        for (int64_t i = 0; i < row_size; ++i) packed[i] += packed[chunk * chunk_size + i];
      for (int64_t d = 0; d < layout.dim; ++d) {
        float* line = packed + d * ld;
        for (int64_t c = 0; c < left; ++c) line[c + layout.kw] += line[c];
        for (int64_t c = left + width; c < width + layout.kw - 1; ++c) line[c - layout.kw] += line[c];
      }
      T* out = unit.row(view, call.shape, row / unit.n[1], row % unit.n[1]);
      upcoming.clear();
      if (row + 1 < rows)
        upcoming.add(unit.row(view, call.shape, (row + 1) / unit.n[1], (row + 1) % unit.n[1]), step_x * view.axis[2], width,
                     layout.dim);
      for (int64_t x = 0; x < width; x += kLanes) {
        upcoming.fetch(kLanes);
        unpack(packed + left + x, ld, std::min<int64_t>(kLanes, width - x), layout.dim, factor,
               out + x * step_x * view.axis[2], step_x * view.axis[2]);
      }
    }
  }
}

template <typename T>
static void backward_sliding(const BackwardCall<T>& call, const Split& split, int64_t first_task, int64_t last_task) {
  const Shape& shape = call.shape;
  const Layout layout(shape);
  const int64_t kt = layout.kt, kh = layout.kh, kw = layout.kw, volume = layout.volume, dim = layout.padded_dim;
  const int64_t max_rows = shape.axes[0].class_length(0) * shape.axes[1].class_length(0);
  const int64_t row_size = dim * layout.key_ld, ld = layout.guarded_ld, guard = layout.guard;
  const int64_t group_rows = backward_rows(shape), key_rows = kh + group_rows - 1;
  const Ring ring(shape, key_rows);
  const int64_t lanes = layout.vectors * kLanes;
  const int64_t bias_size = call.bias ? shape.table_rows() * kw * lanes : 0;
  const int64_t prob_row = volume * ld, query_size = dim * ld;

  const int64_t own_gradients = split.chunks == 1 ? gradient_size(shape) : 0;
  Scratch& memory = Scratch::of_thread();
  const int64_t total = 2 * ring.slots * row_size + own_gradients + group_rows * (2 * query_size + 2 * prob_row + 2 * lanes) +
                        kMaxRows * dim * kLanes + 2 * bias_size;
  float* keys = memory.reserve(total);
  float* values = keys + ring.slots * row_size;
  float* unit_gradients = values + ring.slots * row_size;
  float* queries = unit_gradients + own_gradients;
  float* out_grads = queries + group_rows * query_size;
  float* probs = out_grads + group_rows * query_size;
  float* score_grads = probs + group_rows * prob_row;
  float* lse2 = score_grads + group_rows * prob_row;
  float* delta = lse2 + group_rows * lanes;
  float* mixed = delta + group_rows * lanes;
  float* bias = mixed + kMaxRows * dim * kLanes;
  float* bias_grads = bias + bias_size;
  // the guard columns of queries and probabilities stay zero for the whole call
  std::memset(queries, 0, size_t(group_rows * (2 * query_size + 2 * prob_row)) * 4);

  std::vector<int64_t> packed(static_cast<size_t>(ring.slots));  // the map's row that a slot holds
  std::vector<const float*> key_of(static_cast<size_t>(kt * key_rows)), value_of(key_of.size());
  std::vector<float*> key_grad_of(key_of.size()), value_grad_of(key_of.size());
  std::vector<const float*> query_of(static_cast<size_t>(group_rows)), out_grad_of(query_of.size());
  for (int64_t r = 0; r < group_rows; ++r) {
    query_of[r] = queries + r * query_size + guard;
    out_grad_of[r] = out_grads + r * query_size + guard;
  }
  Upcoming upcoming;
  float* mixed_of[kMaxRows];
  for (int r = 0; r < kMaxRows; ++r) mixed_of[r] = mixed + r * dim * kLanes;
  int64_t biased_head = -1, biased_width = -1;

  for (int64_t task = first_task; task < last_task; ++task) {
    const Unit unit = Unit::of(shape, task / split.chunks);
    const int64_t height = unit.n[1], width = unit.n[2], step_x = shape.axes[2].dilation;
    const int64_t groups_per_frame = (height + group_rows - 1) / group_rows, groups = unit.n[0] * groups_per_frame;
    const int64_t chunk = task % split.chunks;
    float* key_grads = call.workspace ? call.workspace + task * gradient_size(shape) : unit_gradients;
    float* value_grads = key_grads + max_rows * row_size;
    std::memset(key_grads, 0, size_t(gradient_size(shape)) * 4);
    std::fill(packed.begin(), packed.end(), -1);
    if (call.bias) {
      if (biased_head != unit.head || biased_width != width)
        expand_bias(call.bias + unit.head * shape.table(), shape, width, layout, kLog2E, bias);
      biased_head = unit.head, biased_width = width;
      std::memset(bias_grads, 0, size_t(bias_size) * 4);
    }
    const int64_t last_group = groups * (chunk + 1) / split.chunks;
    for (int64_t group = groups * chunk / split.chunks; group < last_group; ++group) {
      const int64_t t = group / groups_per_frame, y0 = group % groups_per_frame * group_rows;
      const int64_t rows = std::min<int64_t>(group_rows, height - y0);
      for (int64_t ot = 0; ot < kt; ++ot) {
        const int64_t key_t = continued(t + ot - kt / 2, unit.n[0], kt);
        for (int64_t p = 0; p < kh + rows - 1; ++p) {
          const int64_t key_y = continued(y0 + p - kh / 2, height, kh), row = key_t * height + key_y;
          const int64_t slot = ring.slot(key_t, key_y);
          if (packed[slot] != key_y) {
            pack_key_row(unit.row(call.k, shape, key_t, key_y), call.k.axis[2] * step_x, width, layout,
                         keys + slot * row_size);
            pack_key_row(unit.row(call.v, shape, key_t, key_y), call.v.axis[2] * step_x, width, layout,
                         values + slot * row_size);
            packed[slot] = key_y;
          }
          const int64_t i = ot * key_rows + p;
          key_of[i] = keys + slot * row_size, value_of[i] = values + slot * row_size;
          key_grad_of[i] = key_grads + row * row_size, value_grad_of[i] = value_grads + row * row_size;
        }
      }
      for (int64_t r = 0; r < rows; ++r) {
        const T* out = unit.row(call.out, shape, t, y0 + r);
        const T* grad = unit.row(call.grad_out, shape, t, y0 + r);
        const float* lse = unit.row(call.lse, shape, t, y0 + r);
        pack_row(unit.row(call.q, shape, t, y0 + r), call.q.axis[2] * step_x, width, layout, call.scale * kLog2E,
                 queries + r * query_size + guard, ld);
        pack_row(grad, call.grad_out.axis[2] * step_x, width, layout, 1.0f, out_grads + r * query_size + guard, ld);
        for (int64_t x = 0; x < lanes; ++x) {
          lse2[r * lanes + x] = x < width ? lse[x * step_x * call.lse.axis[2]] * kLog2E : 0.0f;
          delta[r * lanes + x] =
              x < width ? dot(out + x * step_x * call.out.axis[2], grad + x * step_x * call.grad_out.axis[2], shape.dim)
                        : 0.0f;
        }
        if (call.grad_lse.data) {
          const float* grad_lse = unit.row(call.grad_lse, shape, t, y0 + r);
          for (int64_t x = 0; x < width; ++x) delta[r * lanes + x] -= grad_lse[x * step_x * call.grad_lse.axis[2]];
        }
      }

      upcoming.clear();
      for (int64_t r = 0; r < rows; ++r)
        upcoming.add(unit.row(call.grad_q, shape, t, y0 + r), call.grad_q.axis[2] * step_x, width, shape.dim);
      if (group + 1 < last_group)
        announce(shape, unit, group + 1, group_rows, ring, &packed, call.k, call.v,
                 {&call.q, &call.out, &call.grad_out}, upcoming);
      else if (task + 1 < last_task) {
        const Unit next = Unit::of(shape, (task + 1) / split.chunks);
        const int64_t next_groups = next.n[0] * ((next.n[1] + group_rows - 1) / group_rows);
        announce(shape, next, next_groups * ((task + 1) % split.chunks) / split.chunks, group_rows, ring, nullptr,
                 call.k, call.v, {&call.q, &call.out, &call.grad_out}, upcoming);
      }
      const int64_t share =
          upcoming.share((rows + kMaxRows - 1) / kMaxRows * (round_up(width, kLanes) / kLanes) * kt * kh);

      // P and dS of the group, and from them dQ
      for (int64_t r0 = 0; r0 < rows; r0 += kMaxRows) {
        const int64_t sub = std::min<int64_t>(kMaxRows, rows - r0);
        for (int64_t x = 0; x < width; x += kLanes) {
          float* p0 = probs + r0 * prob_row + guard + x;
          float* g0 = score_grads + r0 * prob_row + guard + x;
          for (int64_t ot = 0; ot < kt; ++ot)
            for (int64_t p = 0; p < kh + sub - 1; ++p) {
              const int64_t r = std::max<int64_t>(0, p - kh + 1), count = std::min(sub - 1, p) - r + 1;
              const int64_t at = r * prob_row + layout.score_at(ot, p - r) * ld, i = ot * key_rows + r0 + p;
              score(count, kw, query_of[r0 + r] + x, query_size, ld, key_of[i] + x, layout.key_ld, shape.dim, p0 + at,
                    prob_row - kw * ld, ld);
              score(count, kw, out_grad_of[r0 + r] + x, query_size, ld, value_of[i] + x, layout.key_ld, shape.dim,
                    g0 + at, prob_row - kw * ld, ld);
              upcoming.fetch(share);
            }
          for (int64_t r = 0; r < sub; ++r) {
            const Vec shift = load(lse2 + (r0 + r) * lanes + x), mean = load(delta + (r0 + r) * lanes + x);
            for (int64_t row = 0; row < kt * kh; ++row) {
              const int64_t at = r * prob_row + layout.score_at(row / kh, row % kh) * ld;
              float *p = p0 + at, *g = g0 + at;
              const int64_t table_row = call.bias ? bias_row(shape, unit, t, y0 + r0 + r, row / kh, row % kh) : 0;
              for (int64_t o = 0; o < kw; ++o) {
                Vec s = load(p + o * ld);
                if (call.bias) s += load(bias + (table_row * kw + o) * lanes + x);
                const Vec weight = exp2_negative(s - shift);
                const Vec grad = weight * (load(g + o * ld) - mean);
                store(p + o * ld, weight);
                store(g + o * ld, grad);
                if (call.bias) {
                  float* sum = bias_grads + (table_row * kw + o) * lanes + x;
                  store(sum, load(sum) + grad);
                }
              }
            }
            std::memset(mixed_of[r], 0, size_t(dim * kLanes) * 4);
          }
          for (int64_t ot = 0; ot < kt; ++ot) {
            const MixArguments arguments{g0 + layout.score_at(ot, 0) * ld, prob_row - kw * ld, kw * ld, ld,
                                         key_of.data() + ot * key_rows + r0, kh + sub - 1, kw, x, layout.key_ld, 1,
                                         mixed_of, 0, kLanes, 1 - kh, kh};
            mix(sub, arguments, dim);
          }
          for (int64_t r = 0; r < sub; ++r)
            unpack(mixed_of[r], kLanes, std::min<int64_t>(kLanes, width - x), shape.dim, splat(call.scale),
                   unit.row(call.grad_q, shape, t, y0 + r0 + r) + x * step_x * call.grad_q.axis[2],
                   step_x * call.grad_q.axis[2]);
        }
      }

      // dK and dV: a block of key rows gathers from the group's query rows, walking columns backwards
      const int64_t block = std::min<int64_t>(kMaxRows, kh);  // rows of a block are distinct rows of the map
      for (int64_t x = 0; x < layout.key_vectors * kLanes; x += kLanes)
        for (int64_t ot = 0; ot < kt; ++ot)
          for (int64_t p0 = 0; p0 < kh + rows - 1; p0 += block) {
            const int64_t count = std::min(block, kh + rows - 1 - p0);
            // query row r sees key rows r .. r + kh - 1
            const int64_t r = std::max<int64_t>(0, p0 - kh + 1), end = std::min(rows, p0 + count);
            const int64_t at = r * prob_row + layout.score_at(ot, p0 - r) * ld + guard + x;
            MixArguments arguments{score_grads + at, kw * ld, prob_row - kw * ld, ld - 1, query_of.data() + r, end - r,
                                   kw, x, ld, -1, key_grad_of.data() + ot * key_rows + p0, x, layout.key_ld, r - p0, kh};
            mix(count, arguments, dim);
            arguments.weights = probs + at;
            arguments.rows = out_grad_of.data() + r;
            arguments.acc = value_grad_of.data() + ot * key_rows + p0;
            mix(count, arguments, dim);
          }
    }
    if (call.bias) {
      float* table = call.grad_bias + task * shape.table();
      for (int64_t row = 0; row < shape.table_rows(); ++row)
        for (int64_t o = 0; o < kw; ++o)
          for (int64_t x = 0; x < width; ++x)
            table[row * shape.table_columns() + bias_column(x, o, width, kw)] +=
                bias_grads[(row * kw + o) * lanes + x];
    }
    if (split.chunks == 1) store_key_gradients(call, unit, layout, key_grads, 1, 0);
  }
  memory.trim();
}

}  // namespace vantage::VANTAGE_WIDTH
