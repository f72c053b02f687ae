// Forward: a block holds the queries of a tile and streams the keys and values of their windows through an online
// softmax.
#pragma once

#include "cuda_columns.cuh"

namespace vantage::cuda {

template <class T>
struct ForwardArguments {
  Problem problem;
  View<const T> q, k, v;
  View<T> out;
  float* lse;         // (batch, axis 0, axis 1, axis 2, heads)
  const float* bias;  // (heads, table_size) or null
  int stages;
};

template <class T, int D, int COLUMNS>
struct ForwardShared {
  T* queries;  // (ROWS, pitch), in the end the outputs
  Tile* tile;
  Row* rows;
  float* weights;  // (WARPS, 16, WEIGHT_PITCH)

  HOST_DEVICE void carve(Carver& shared, const Problem& problem, Columns<T, D, COLUMNS>& columns) {
    queries = shared.take<T>(size_t(ROWS) * pitch_of<T>(problem));
    tile = shared.take<Tile>(1);
    rows = shared.take<Row>(ROWS);
    weights = shared.take<float>(IS_FLOAT<T> ? WARPS * 16 * WEIGHT_PITCH<COLUMNS / 8> : 0);
    columns.carve(shared);
  }
};

template <class T, int D, int COLUMNS>
KERNEL(MIN_BLOCKS<D>) forward_kernel(CONSTANT ForwardArguments<T> a) {
  constexpr int BLOCKS = COLUMNS / 8;
  const Problem& problem = a.problem;
  const int pitch = pitch_of<T>(problem), depth = problem.depth;
  const int lane = thread_index() % 32, warp = thread_index() / 32;
  const int head = block_index() % problem.heads;

  Columns<T, D, COLUMNS> columns{problem, a.k, a.v, a.stages, head};
  ForwardShared<T, D, COLUMNS> shared;
  Carver carver{shared_memory()};
  shared.carve(carver, problem, columns);
  columns.tile = shared.tile, columns.rows = shared.rows;
  find_tile<false>(*shared.tile, problem, block_index() / problem.heads);
  sync_block();
  if (shared.tile->rows.count() == 0) return;
  find_rows<false>(shared.rows, problem, *shared.tile);
  columns.find(0, 2);
  sync_block();
  load_tile<T, D, ROWS>(shared.queries, problem, a.q, shared.tile->batch, head, shared.rows);

  T* const queries = shared.queries + 16 * warp * pitch;  // of this warp
  float* const weights = shared.weights + warp * 16 * WEIGHT_PITCH<BLOCKS>;
  const int row = 16 * warp + lane / 4;  // of this lane, with row + 8
  const LaneBias<false> bias(problem, a.bias, head, shared.rows[row].token, shared.rows[row + 8].token);

  float sums[D / 8][4] = {};
  float maximum[2] = {-INFINITY, -INFINITY}, total[2] = {0.0f, 0.0f};
#pragma unroll 1
  for (int chunk = columns.first_step(); chunk < columns.chunks(); ++chunk) {
    if (!columns.advance(chunk, [](int) {})) continue;
    Bits<COLUMNS> bits;
    const uint32_t active = columns.read_bits(bits, chunk, row);
    if (!active) continue;
    float scores[BLOCKS][4] = {};
    multiply_transposed<D>(scores, queries, columns.first(chunk), pitch, depth, active);
    mask<COLUMNS>(scores, bits, active, problem.scale, bias, columns.tokens(chunk));

    float shift[2] = {maximum[0], maximum[1]}, correction[2];
    each_active<BLOCKS>(active, [&](int block, int e) { shift[e / 2] = fmaxf(shift[e / 2], scores[block][e]); });
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      shift[r] = fmaxf(shift[r], shuffle_xor(shift[r], 1));
      shift[r] = fmaxf(shift[r], shuffle_xor(shift[r], 2));
      const float previous = maximum[r];
      maximum[r] = shift[r];
      if (shift[r] == -INFINITY) shift[r] = 0.0f;  // nothing seen yet: -inf minus -inf would be NaN
      correction[r] = exp2_of(previous - shift[r]);
      total[r] *= correction[r];
    }
#pragma unroll
    for (int block = 0; block < D / 8; ++block)
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[block][e] *= correction[e / 2];
    each_active<BLOCKS>(active, [&](int block, int e) {
      scores[block][e] = exp2_of(scores[block][e] - shift[e / 2]);
      total[e / 2] += scores[block][e];
    });
    if (IS_FLOAT<T>) share_weights(weights, scores);
    multiply<D>(sums, scores, weights, columns.second(chunk), pitch, depth, active);
  }

  float inverse[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    total[r] += shuffle_xor(total[r], 1);
    total[r] += shuffle_xor(total[r], 2);
    inverse[r] = 1.0f / total[r];
    const Token& token = shared.rows[row + 8 * r].token;
    if (lane % 4 == 0 && token.x >= 0)
      a.lse[flat_index(problem, token, shared.tile->batch, head)] = (maximum[r] + log2_of(total[r])) / LOG2_E;
  }
  sync_warp();  // the queries are used no more
  store_sums(queries, pitch, sums, inverse, depth);
  sync_block();
  store_tile<T, D>(shared.queries, problem, a.out, shared.tile->batch, head, shared.rows);
}

template <class T, int D>
void run_forward_at(ForwardArguments<T> a, size_t shared_limit, Stream stream) {
  constexpr int COLUMNS = !IS_FLOAT<T> ? 64 : D < 128 ? 32 : 16;
  const auto bytes = [&](int stages) {
    a.stages = stages;
    Columns<T, D, COLUMNS> columns{a.problem, a.k, a.v, stages, 0};
    ForwardShared<T, D, COLUMNS> shared;
    Carver measure{nullptr};
    shared.carve(measure, a.problem, columns);
    return measure.bytes;
  };
  const size_t needed = bytes(2) <= shared_limit ? bytes(2) : bytes(1);
  const int blocks = a.problem.tile_count() * a.problem.heads;
  launch(forward_kernel<T, D, COLUMNS>, a, blocks, needed, stream);
}

// shared_limit: bytes of shared memory that a block may have
template <class T>
void run_forward(const ForwardArguments<T>& a, size_t shared_limit, Stream stream) {
  if (a.problem.depth <= 32) return run_forward_at<T, 32>(a, shared_limit, stream);
  if (a.problem.depth <= 64) return run_forward_at<T, 64>(a, shared_limit, stream);
  run_forward_at<T, 128>(a, shared_limit, stream);
}

}  // namespace vantage::cuda
