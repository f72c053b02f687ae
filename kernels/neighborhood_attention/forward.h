// Forward pass of the fast path.
#pragma once

#include "calls.h"
#include "sliding.h"

namespace vantage::VANTAGE_WIDTH {

constexpr float kLog2E = 1.44269504f, kLn2 = 0.69314718f;

// Tasks first .. last - 1 of split.units * split.chunks
template <typename T>
static void forward_sliding(const ForwardCall<T>& call, const Split& split, int64_t first_task, int64_t last_task) {
  const Shape& shape = call.shape;
  const Layout layout(shape);
  const int64_t kt = layout.kt, kh = layout.kh, kw = layout.kw, volume = layout.volume;
  const int64_t max_rows = shape.axes[0].class_length(0) * shape.axes[1].class_length(0);
  const int64_t row_size = layout.padded_dim * layout.key_ld, q_ld = layout.vectors * kLanes;
  const int64_t key_rows = kh + kMaxRows - 1;
  const int64_t bias_size = call.bias ? shape.table_rows() * kw * q_ld : 0;

  Scratch& memory = Scratch::of_thread();
  float* keys = memory.reserve(2 * max_rows * row_size + kMaxRows * layout.padded_dim * (q_ld + kLanes) +
                               kMaxRows * volume * kLanes + bias_size);
  float* values = keys + max_rows * row_size;
  float* queries = values + max_rows * row_size;
  float* scores = queries + kMaxRows * layout.padded_dim * q_ld;
  float* mixed = scores + kMaxRows * volume * kLanes;
  float* bias = mixed + kMaxRows * layout.padded_dim * kLanes;
  std::vector<char> packed(static_cast<size_t>(max_rows));
  std::vector<const float*> key_of(static_cast<size_t>(kt * key_rows)), value_of(key_of.size());
  float* mixed_of[kMaxRows];
  for (int r = 0; r < kMaxRows; ++r) mixed_of[r] = mixed + r * layout.padded_dim * kLanes;
  const int64_t score_row = volume * kLanes;
  int64_t biased_head = -1, biased_width = -1;

  for (int64_t task = first_task; task < last_task; ++task) {
    const Unit unit = Unit::of(shape, task / split.chunks);
    const int64_t height = unit.n[1], width = unit.n[2];
    const int64_t groups_per_frame = (height + kMaxRows - 1) / kMaxRows, groups = unit.n[0] * groups_per_frame;
    const int64_t chunk = task % split.chunks;
    const int64_t step_x = shape.axes[2].dilation;
    std::fill(packed.begin(), packed.end(), 0);
    if (call.bias && (biased_head != unit.head || biased_width != width)) {
      expand_bias(call.bias + unit.head * shape.table(), shape, width, layout, kLog2E, bias);
      biased_head = unit.head, biased_width = width;
    }
    for (int64_t group = groups * chunk / split.chunks; group < groups * (chunk + 1) / split.chunks; ++group) {
      const int64_t t = group / groups_per_frame, y0 = group % groups_per_frame * kMaxRows;
      const int64_t rows = std::min<int64_t>(kMaxRows, height - y0);
      for (int64_t ot = 0; ot < kt; ++ot) {
        const int64_t key_t = continued(t + ot - kt / 2, unit.n[0], kt);
        for (int64_t p = 0; p < kh + rows - 1; ++p) {
          const int64_t key_y = continued(y0 + p - kh / 2, height, kh), row = key_t * height + key_y;
          if (!packed[row]) {
            pack_key_row(unit.row(call.k, shape, key_t, key_y), call.k.axis[2] * step_x, width, layout,
                         keys + row * row_size);
            pack_key_row(unit.row(call.v, shape, key_t, key_y), call.v.axis[2] * step_x, width, layout,
                         values + row * row_size);
            packed[row] = 1;
          }
          key_of[ot * key_rows + p] = keys + row * row_size;
          value_of[ot * key_rows + p] = values + row * row_size;
        }
      }
      for (int64_t r = 0; r < rows; ++r)
        pack_row(unit.row(call.q, shape, t, y0 + r), call.q.axis[2] * step_x, width, layout, call.scale * kLog2E,
                 queries + r * layout.padded_dim * q_ld, q_ld);

      for (int64_t x = 0; x < width; x += kLanes) {
        for (int64_t ot = 0; ot < kt; ++ot)
          for (int64_t p = 0; p < kh + rows - 1; ++p) {
            const int64_t r = std::max<int64_t>(0, p - kh + 1), count = std::min(rows - 1, p) - r + 1;
            score(count, kw, queries + r * layout.padded_dim * q_ld + x, layout.padded_dim * q_ld, q_ld,
                  key_of[ot * key_rows + p] + x, layout.key_ld, layout.dim,
                  scores + r * score_row + (ot * kh + p - r) * kw * kLanes, score_row - kw * kLanes, kLanes);
          }
        Vec inverse[kMaxRows];
        const int64_t count = std::min<int64_t>(kLanes, width - x);
        for (int64_t r = 0; r < rows; ++r) {
          float* s = scores + r * score_row;
          if (call.bias)
            for (int64_t ot = 0; ot < kt; ++ot)
              for (int64_t oy = 0; oy < kh; ++oy) {
                const float* b = bias + bias_row(shape, unit, t, y0 + r, ot, oy) * kw * q_ld + x;
                float* row = s + (ot * kh + oy) * kw * kLanes;
                for (int64_t o = 0; o < kw; ++o) store(row + o * kLanes, load(row + o * kLanes) + load(b + o * q_ld));
              }
          Vec largest[2] = {load(s), load(s)};  // two chains hide the latency
          for (int64_t i = 1; i < volume; ++i) {
            const Vec value = load(s + i * kLanes);
            largest[i & 1] = value > largest[i & 1] ? value : largest[i & 1];
          }
          const Vec top = largest[0] > largest[1] ? largest[0] : largest[1];
          Vec sum[2] = {Vec{}, Vec{}};
          for (int64_t i = 0; i < volume; ++i) {
            const Vec weight = exp2_negative(load(s + i * kLanes) - top);
            store(s + i * kLanes, weight);
            sum[i & 1] += weight;
          }
          const Vec total = sum[0] + sum[1];
          inverse[r] = 1.0f / total;
          const Vec lse = (top + log2_positive(total)) * kLn2;
          float* out = unit.row(call.lse, shape, t, y0 + r) + x * step_x * call.lse.axis[2];
          for (int64_t i = 0; i < count; ++i) out[i * step_x * call.lse.axis[2]] = lse[i];
          std::memset(mixed_of[r], 0, size_t(layout.padded_dim * kLanes) * 4);
        }
        for (int64_t ot = 0; ot < kt; ++ot)
          for_each_run(rows, kh, [&](int64_t r, int64_t run_rows, int64_t p, int64_t run) {
            const MixArguments arguments{scores + r * score_row + (ot * kh + p - r) * kw * kLanes,
                                         score_row - kw * kLanes, kw * kLanes, kLanes,
                                         value_of.data() + ot * key_rows + p, run, kw, x, layout.key_ld, 1,
                                         mixed_of + r, 0, kLanes};
            mix(run_rows, arguments, layout.padded_dim);
          });
        for (int64_t r = 0; r < rows; ++r)
          unpack(mixed_of[r], kLanes, count, layout.dim, inverse[r],
                 unit.row(call.out, shape, t, y0 + r) + x * step_x * call.out.axis[2], step_x * call.out.axis[2]);
      }
    }
  }
  memory.trim();
}

}  // namespace vantage::VANTAGE_WIDTH
