// Forward pass of the fast path.
#pragma once

#include "calls.h"
#include "sliding.h"

namespace vantage::VANTAGE_WIDTH {

constexpr float kLog2E = 1.44269504f, kLn2 = 0.69314718f;

// Of `count` vectors and `top`; two chains hide the latency
static inline Vec maximum(const float* s, int64_t count, Vec top) {
  Vec other = top;
  int64_t i = 0;
  for (; i + 2 <= count; i += 2) {
    const Vec first = load(s + i * kLanes), second = load(s + (i + 1) * kLanes);
    top = first > top ? first : top;
    other = second > other ? second : other;
  }
  if (i < count) {
    const Vec last = load(s + i * kLanes);
    other = last > other ? last : other;
  }
  return other > top ? other : top;
}

// s <- 2^(s - top) for `count` vectors; returns their sum
static inline Vec exponentiate(float* s, int64_t count, Vec top) {
  Vec sum{}, other{};
  int64_t i = 0;
  for (; i + 2 <= count; i += 2) {
    const Vec first = exp2_negative(load(s + i * kLanes) - top);
    const Vec second = exp2_negative(load(s + (i + 1) * kLanes) - top);
    store(s + i * kLanes, first);
    store(s + (i + 1) * kLanes, second);
    sum += first;
    other += second;
  }
  if (i < count) {
    const Vec last = exp2_negative(load(s + i * kLanes) - top);
    store(s + i * kLanes, last);
    other += last;
  }
  return sum + other;
}

// Tasks first .. last - 1 of split.units * split.chunks
template <typename T>
static void forward_sliding(const ForwardCall<T>& call, const Split& split, int64_t first_task, int64_t last_task) {
  const Shape& shape = call.shape;
  const Layout layout(shape);
  const int64_t kt = layout.kt, kh = layout.kh, kw = layout.kw, volume = layout.volume;
  const int64_t row_size = layout.padded_dim * layout.key_ld, q_ld = layout.vectors * kLanes;
  const int64_t key_rows = kh + kMaxRows - 1;
  const Ring ring(shape, key_rows);
  const int64_t bias_size = call.bias ? shape.table_rows() * kw * q_ld : 0;

  Scratch& memory = Scratch::of_thread();
  float* keys = memory.reserve(2 * ring.slots * row_size + kMaxRows * layout.padded_dim * (q_ld + kLanes) +
                               kMaxRows * volume * kLanes + bias_size);
  float* values = keys + ring.slots * row_size;
  float* queries = values + ring.slots * row_size;
  float* scores = queries + kMaxRows * layout.padded_dim * q_ld;
  float* mixed = scores + kMaxRows * volume * kLanes;
  float* bias = mixed + kMaxRows * layout.padded_dim * kLanes;
  std::vector<int64_t> packed(static_cast<size_t>(ring.slots));  // the map's row that a slot holds
  std::vector<const float*> key_of(static_cast<size_t>(kt * key_rows)), value_of(key_of.size());
  Upcoming upcoming;
  float* mixed_of[kMaxRows];
  for (int r = 0; r < kMaxRows; ++r) mixed_of[r] = mixed + r * layout.padded_dim * kLanes;
  const int64_t score_row = volume * kLanes, plane = kh * kw;
  int64_t biased_head = -1, biased_width = -1;

  for (int64_t task = first_task; task < last_task; ++task) {
    const Unit unit = Unit::of(shape, task / split.chunks);
    const int64_t height = unit.n[1], width = unit.n[2];
    const int64_t groups_per_frame = (height + kMaxRows - 1) / kMaxRows, groups = unit.n[0] * groups_per_frame;
    const int64_t chunk = task % split.chunks;
    const int64_t step_x = shape.axes[2].dilation;
    std::fill(packed.begin(), packed.end(), -1);
    if (call.bias && (biased_head != unit.head || biased_width != width)) {
      expand_bias(call.bias + unit.head * shape.table(), shape, width, layout, kLog2E, bias);
      biased_head = unit.head, biased_width = width;
    }
    const int64_t last_group = groups * (chunk + 1) / split.chunks;
    for (int64_t group = groups * chunk / split.chunks; group < last_group; ++group) {
      const int64_t t = group / groups_per_frame, y0 = group % groups_per_frame * kMaxRows;
      const int64_t rows = std::min<int64_t>(kMaxRows, height - y0);
      for (int64_t ot = 0; ot < kt; ++ot) {
        const int64_t key_t = continued(t + ot - kt / 2, unit.n[0], kt);
        for (int64_t p = 0; p < kh + rows - 1; ++p) {
          const int64_t key_y = continued(y0 + p - kh / 2, height, kh), row = ring.slot(key_t, key_y);
          if (packed[row] != key_y) {
            pack_key_row(unit.row(call.k, shape, key_t, key_y), call.k.axis[2] * step_x, width, layout,
                         keys + row * row_size);
            pack_key_row(unit.row(call.v, shape, key_t, key_y), call.v.axis[2] * step_x, width, layout,
                         values + row * row_size);
            packed[row] = key_y;
          }
          key_of[ot * key_rows + p] = keys + row * row_size;
          value_of[ot * key_rows + p] = values + row * row_size;
        }
      }
      for (int64_t r = 0; r < rows; ++r)
        pack_row(unit.row(call.q, shape, t, y0 + r), call.q.axis[2] * step_x, width, layout, call.scale * kLog2E,
                 queries + r * layout.padded_dim * q_ld, q_ld);

      upcoming.clear();
      for (int64_t r = 0; r < rows; ++r)
        upcoming.add(unit.row(call.out, shape, t, y0 + r), call.out.axis[2] * step_x, width, shape.dim);
      if (group + 1 < last_group)
        announce(shape, unit, group + 1, kMaxRows, ring, &packed, call.k, call.v, {&call.q}, upcoming);
      else if (task + 1 < last_task) {
        const Unit next = Unit::of(shape, (task + 1) / split.chunks);
        const int64_t next_groups = next.n[0] * ((next.n[1] + kMaxRows - 1) / kMaxRows);
        announce(shape, next, next_groups * ((task + 1) % split.chunks) / split.chunks, kMaxRows, ring, nullptr,
                 call.k, call.v, {&call.q}, upcoming);
      }
      const int64_t share = upcoming.share(round_up(width, kLanes) / kLanes * kt * (kh + rows - 1));
      for (int64_t x = 0; x < width; x += kLanes) {
        for (int64_t ot = 0; ot < kt; ++ot)
          for (int64_t p = 0; p < kh + rows - 1; ++p) {
            const int64_t r = std::max<int64_t>(0, p - kh + 1), count = std::min(rows - 1, p) - r + 1;
            score(count, kw, queries + r * layout.padded_dim * q_ld + x, layout.padded_dim * q_ld, q_ld,
                  key_of[ot * key_rows + p] + x, layout.key_ld, layout.dim,
                  scores + r * score_row + layout.score_at(ot, p - r) * kLanes, score_row - kw * kLanes, kLanes);
            upcoming.fetch(share);
          }
        Vec inverse[kMaxRows];
        const int64_t count = std::min<int64_t>(kLanes, width - x);
        for (int64_t r = 0; r < rows; ++r) {
          float* s = scores + r * score_row;
          if (call.bias)
            for (int64_t ot = 0; ot < kt; ++ot)
              for (int64_t oy = 0; oy < kh; ++oy) {
                const float* b = bias + bias_row(shape, unit, t, y0 + r, ot, oy) * kw * q_ld + x;
                float* row = s + layout.score_at(ot, oy) * kLanes;
                for (int64_t o = 0; o < kw; ++o) store(row + o * kLanes, load(row + o * kLanes) + load(b + o * q_ld));
              }
          Vec top = load(s + layout.score_at(0, 0) * kLanes), total{};
          for (int64_t ot = 0; ot < kt; ++ot) top = maximum(s + layout.score_at(ot, 0) * kLanes, plane, top);
          for (int64_t ot = 0; ot < kt; ++ot) total += exponentiate(s + layout.score_at(ot, 0) * kLanes, plane, top);
          inverse[r] = 1.0f / total;
          const Vec lse = (top + log2_positive(total)) * kLn2;
          float* out = unit.row(call.lse, shape, t, y0 + r) + x * step_x * call.lse.axis[2];
          for (int64_t i = 0; i < count; ++i) out[i * step_x * call.lse.axis[2]] = lse[i];
          std::memset(mixed_of[r], 0, size_t(layout.padded_dim * kLanes) * 4);
        }
        for (int64_t ot = 0; ot < kt; ++ot) {
          const MixArguments arguments{scores + layout.score_at(ot, 0) * kLanes, score_row - kw * kLanes, kw * kLanes,
                                       kLanes, value_of.data() + ot * key_rows, kh + rows - 1, kw, x, layout.key_ld, 1,
                                       mixed_of, 0, kLanes, 1 - kh, kh};
          mix(rows, arguments, layout.padded_dim);
        }
        for (int64_t r = 0; r < rows; ++r)
          unpack(mixed_of[r], kLanes, count, layout.dim, inverse[r],
                 unit.row(call.out, shape, t, y0 + r) + x * step_x * call.out.axis[2], step_x * call.out.axis[2]);
      }
    }
  }
  memory.trim();
}

}  // namespace vantage::VANTAGE_WIDTH
