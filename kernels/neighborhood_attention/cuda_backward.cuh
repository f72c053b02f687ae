// Backward, without atomics, in an order that depends on the sizes alone:
// 1. rows are queries, columns the keys and values of their windows: grad_q, and delta for the second kernel;
//    with a bias, every warp also adds its dS up in a table of its own, and every block leaves one in `partials`;
// 2. rows are keys, columns the queries that see them with their gradients: grad_k and grad_v;
// 3. grad_bias is the sum of the partial tables.
// P = exp(logit - lse), dS = P * (grad_out . v - delta), delta = grad_out . out - grad_lse; see registration.py.
#pragma once

#include "cuda_columns.cuh"

namespace vantage::cuda {

constexpr int BLOCKS_WITH_TABLES = 2048;  // at most about so many blocks make partial tables, each from several tiles

template <class T>
struct BackwardArguments {
  Problem problem;
  View<const T> q, k, v, out, grad_out;
  View<T> grad_q, grad_k, grad_v;
  const float *lse, *grad_lse;  // (batch, axis 0, axis 1, axis 2, heads); grad_lse may be null
  float* delta;                 // scratch of lse's shape
  const float* bias;            // (heads, table_size) or null
  float* grad_bias;             // (heads, table_size), with a bias
  float* partials;              // scratch (slots, heads, table_size), with a bias
  int slots;
  bool is_table_shared;  // whether the warps' tables fit into shared memory; else they are slots of `partials`
  int stages;
};

template <class T, int D>
constexpr int BACKWARD_COLUMNS = IS_FLOAT<T> && D == 128 ? 16 : 32;

template <class T, int D>
struct QueriesShared {
  T *queries, *grads;  // (ROWS, pitch); in the end queries are grad_q
  Tile* tile;
  Row* rows;
  float* weights;  // (WARPS, 16, WEIGHT_PITCH)
  float* tables;   // (WARPS, table_size)

  template <class ColumnsOf>
  HOST_DEVICE void carve(Carver& shared, const Problem& problem, ColumnsOf& columns, bool has_bias, bool has_tables) {
    queries = shared.take<T>(size_t(ROWS) * pitch_of<T>(problem));
    grads = shared.take<T>(size_t(ROWS) * pitch_of<T>(problem));
    tile = shared.take<Tile>(1);
    rows = shared.take<Row>(ROWS);
    weights = shared.take<float>(
        IS_FLOAT<T> || has_bias ? WARPS * 16 * WEIGHT_PITCH<BACKWARD_COLUMNS<T, D> / 8> : 0);
    tables = shared.take<float>(has_tables ? size_t(WARPS) * problem.table_size : 0);
    columns.carve(shared);
  }
};

// delta of a query, computed by the four lanes that have it
template <class T>
DEVICE float find_delta(const BackwardArguments<T>& a, const Token& token, int batch, int head) {
  float delta = 0.0f;
  if (token.x >= 0) {
    const T* out = a.out.data + batch * a.out.batch + head * a.out.head + token.offset(a.out);
    const T* grad = a.grad_out.data + batch * a.grad_out.batch + head * a.grad_out.head + token.offset(a.grad_out);
#pragma unroll 8
    for (int d = thread_index() % 4; d < a.problem.head_dim; d += 4) delta += to_float(out[d]) * to_float(grad[d]);
  }
  delta += shuffle_xor(delta, 1);
  delta += shuffle_xor(delta, 2);
  if (token.x < 0) return 0.0f;
  const int64_t index = flat_index(a.problem, token, batch, head);
  if (a.grad_lse) delta -= a.grad_lse[index];
  if (thread_index() % 4 == 0) a.delta[index] = delta;
  return delta;
}

// table += dS of one chunk. Rows take turns: the columns of one row have different offsets, hence different entries.
template <int COLUMNS>
DEVICE void add_to_table(
    float* table, const float* weights, const Bits<COLUMNS>& bits, const Row* rows, const Token* columns,
    uint32_t center) {
  const int c = thread_index() % 32;
  const uint32_t place = c < COLUMNS ? columns[c].place + center : 0;
#pragma unroll 2
  for (int row = 0; row < 16; ++row) {
    // not bits[row / 8]: an index known only at run time would move the array to memory
    const uint32_t seen = shuffle(row < 8 ? bits[0][0] : bits[1][0], row % 8 * 4);
    if (seen >> c & 1)
      table[uint32_t(place - rows[row].token.place)] += weights[row * WEIGHT_PITCH<COLUMNS / 8> + c];
    sync_warp();
  }
}

template <class T, int D>
KERNEL(MIN_BLOCKS<D>) query_gradient_kernel(CONSTANT BackwardArguments<T> a) {
  constexpr int COLUMNS = BACKWARD_COLUMNS<T, D>, BLOCKS = COLUMNS / 8;
  const Problem& problem = a.problem;
  const int pitch = pitch_of<T>(problem), depth = problem.depth;
  const int lane = thread_index() % 32, warp = thread_index() / 32;
  const int head = block_index() % problem.heads, slot = block_index() / problem.heads;

  Columns<T, D, COLUMNS> columns{problem, a.k, a.v, a.stages, head};
  QueriesShared<T, D> shared;
  Carver carver{shared_memory()};
  shared.carve(carver, problem, columns, a.bias, a.bias && a.is_table_shared);
  columns.tile = shared.tile, columns.rows = shared.rows;

  const int64_t size = problem.table_size;
  float* table = nullptr;  // of this warp
  if (a.bias) {
    table = a.is_table_shared ? shared.tables + warp * size
                              : a.partials + (int64_t(slot * WARPS + warp) * problem.heads + head) * size;
    for (int i = lane; i < size; i += 32) table[i] = 0.0f;
  }

  const int slots = block_count() / problem.heads;
#pragma unroll 1
  for (int index = slot; index < problem.tile_count(); index += slots) {
    sync_block();  // the previous tile is done
    find_tile<false>(*shared.tile, problem, index);
    sync_block();
    if (shared.tile->rows.count() == 0) continue;
    const int batch = shared.tile->batch;
    find_rows<false>(shared.rows, problem, *shared.tile);
    columns.find(0, 2);
    sync_block();
    load_tile<T, D, ROWS>(shared.queries, problem, a.q, batch, head, shared.rows);
    load_tile<T, D, ROWS>(shared.grads, problem, a.grad_out, batch, head, shared.rows);

    T* const queries = shared.queries + 16 * warp * pitch;  // of this warp
    const T* const grads = shared.grads + 16 * warp * pitch;
    float* const weights = shared.weights + warp * 16 * WEIGHT_PITCH<BLOCKS>;
    const int row = 16 * warp + lane / 4;  // of this lane, with row + 8
    const LaneBias<false> bias(problem, a.bias, head, shared.rows[row].token, shared.rows[row + 8].token);
    float lse[2], delta[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const Token& token = shared.rows[row + 8 * r].token;
      lse[r] = token.x < 0 ? 0.0f : a.lse[flat_index(problem, token, batch, head)] * LOG2_E;
      delta[r] = find_delta(a, token, batch, head);
    }

    float sums[D / 8][4] = {};
#pragma unroll 1
    for (int chunk = columns.first_step(); chunk < columns.chunks(); ++chunk) {
      if (!columns.advance(chunk, [](int) {})) continue;
      Bits<COLUMNS> bits;
      const uint32_t active = columns.read_bits(bits, chunk, row);
      if (!active) continue;
      float scores[BLOCKS][4] = {}, products[BLOCKS][4] = {};
      multiply_transposed<D>(scores, queries, columns.first(chunk), pitch, depth, active);
      multiply_transposed<D>(products, grads, columns.second(chunk), pitch, depth, active);
      mask<COLUMNS>(scores, bits, active, problem.scale, bias, columns.tokens(chunk));
      each_active<BLOCKS>(active, [&](int block, int e) {  // exp2(-inf) is 0 where masked
        scores[block][e] = exp2_of(scores[block][e] - lse[e / 2]) * (products[block][e] - delta[e / 2]);
      });
      if (IS_FLOAT<T> || a.bias) share_weights(weights, scores);
      multiply<D>(sums, scores, weights, columns.first(chunk), pitch, depth, active);
      if (a.bias)
        add_to_table<COLUMNS>(
            table, weights, bits, shared.rows + 16 * warp, columns.tokens(chunk), problem.table_center);
    }
    const float scale[2] = {problem.scale, problem.scale};
    sync_warp();  // the queries are used no more
    store_sums(queries, pitch, sums, scale, depth);
    sync_block();
    store_tile<T, D>(shared.queries, problem, a.grad_q, batch, head, shared.rows);
  }
  if (a.bias && a.is_table_shared) {
    sync_block();
    float* partial = a.partials + (int64_t(slot) * problem.heads + head) * size;
    for (int i = thread_index(); i < size; i += THREADS) {
      float sum = 0.0f;
      for (int w = 0; w < WARPS; ++w) sum += shared.tables[w * size + i];
      partial[i] = sum;
    }
  }
}

template <class T, int D>
struct KeysShared {
  T *keys, *values;  // (ROWS, pitch), in the end their gradients
  Tile* tile;
  Row* rows;
  float* weights;      // (WARPS, 16, WEIGHT_PITCH)
  float *lse, *delta;  // (2, COLUMNS): of the queries of two chunks

  template <class ColumnsOf>
  HOST_DEVICE void carve(Carver& shared, const Problem& problem, ColumnsOf& columns) {
    keys = shared.take<T>(size_t(ROWS) * pitch_of<T>(problem));
    values = shared.take<T>(size_t(ROWS) * pitch_of<T>(problem));
    tile = shared.take<Tile>(1);
    rows = shared.take<Row>(ROWS);
    weights = shared.take<float>(IS_FLOAT<T> ? WARPS * 16 * WEIGHT_PITCH<BACKWARD_COLUMNS<T, D> / 8> : 0);
    lse = shared.take<float>(2 * BACKWARD_COLUMNS<T, D>);
    delta = shared.take<float>(2 * BACKWARD_COLUMNS<T, D>);
    columns.carve(shared);
  }
};

template <class T, int D>
KERNEL(MIN_BLOCKS<D>) key_gradient_kernel(CONSTANT BackwardArguments<T> a) {
  constexpr int COLUMNS = BACKWARD_COLUMNS<T, D>, BLOCKS = COLUMNS / 8;
  const Problem& problem = a.problem;
  const int pitch = pitch_of<T>(problem), depth = problem.depth;
  const int lane = thread_index() % 32, warp = thread_index() / 32;
  const int head = block_index() % problem.heads;

  Columns<T, D, COLUMNS> columns{problem, a.q, a.grad_out, a.stages, head};
  KeysShared<T, D> shared;
  Carver carver{shared_memory()};
  shared.carve(carver, problem, columns);
  columns.tile = shared.tile, columns.rows = shared.rows;
  find_tile<true>(*shared.tile, problem, block_index() / problem.heads);
  sync_block();
  if (shared.tile->rows.count() == 0) return;
  const int batch = shared.tile->batch;
  const auto load_statistics = [&](int chunk) {
    const Token* tokens = columns.tokens(chunk);
    for (int i = thread_index(); i < COLUMNS; i += THREADS) {
      const int64_t index = tokens[i].x < 0 ? -1 : flat_index(problem, tokens[i], batch, head);
      shared.lse[chunk % 2 * COLUMNS + i] = index < 0 ? 0.0f : a.lse[index] * LOG2_E;
      shared.delta[chunk % 2 * COLUMNS + i] = index < 0 ? 0.0f : a.delta[index];
    }
  };
  find_rows<true>(shared.rows, problem, *shared.tile);
  columns.find(0, 2);
  sync_block();
  load_tile<T, D, ROWS>(shared.keys, problem, a.k, batch, head, shared.rows);
  load_tile<T, D, ROWS>(shared.values, problem, a.v, batch, head, shared.rows);

  T* const keys = shared.keys + 16 * warp * pitch;  // of this warp
  T* const values = shared.values + 16 * warp * pitch;
  float* const weights = shared.weights + warp * 16 * WEIGHT_PITCH<BLOCKS>;
  const int row = 16 * warp + lane / 4;  // of this lane, with row + 8
  const LaneBias<true> bias(problem, a.bias, head, shared.rows[row].token, shared.rows[row + 8].token);

  float key_sums[D / 8][4] = {}, value_sums[D / 8][4] = {};
#pragma unroll 1
  for (int chunk = columns.first_step(); chunk < columns.chunks(); ++chunk) {
    if (!columns.advance(chunk, load_statistics)) continue;
    Bits<COLUMNS> bits;
    const uint32_t active = columns.read_bits(bits, chunk, row);
    if (!active) continue;
    float scores[BLOCKS][4] = {}, products[BLOCKS][4] = {};
    multiply_transposed<D>(scores, keys, columns.first(chunk), pitch, depth, active);
    multiply_transposed<D>(products, values, columns.second(chunk), pitch, depth, active);
    mask<COLUMNS>(scores, bits, active, problem.scale, bias, columns.tokens(chunk));
    const float* const lse = shared.lse + chunk % 2 * COLUMNS + lane % 4 * 2;
    const float* const delta = shared.delta + chunk % 2 * COLUMNS + lane % 4 * 2;
    each_active<BLOCKS>(active, [&](int block, int e) {
      const int c = 8 * block + e % 2;
      scores[block][e] = exp2_of(scores[block][e] - lse[c]);
      products[block][e] = scores[block][e] * (products[block][e] - delta[c]);
    });
    if (IS_FLOAT<T>) share_weights(weights, scores);
    multiply<D>(value_sums, scores, weights, columns.second(chunk), pitch, depth, active);
    if (IS_FLOAT<T>) share_weights(weights, products);
    multiply<D>(key_sums, products, weights, columns.first(chunk), pitch, depth, active);
  }
  const float scale[2] = {problem.scale, problem.scale}, one[2] = {1.0f, 1.0f};
  sync_warp();  // keys and values are used no more
  store_sums(keys, pitch, key_sums, scale, depth);
  store_sums(values, pitch, value_sums, one, depth);
  sync_block();
  store_tile<T, D>(shared.keys, problem, a.grad_k, batch, head, shared.rows);
  store_tile<T, D>(shared.values, problem, a.grad_v, batch, head, shared.rows);
}

struct BiasArguments {
  const float* partials;  // (slots, count)
  float* grad_bias;       // (count)
  int slots, count;
};

// A block adds up 32 entries: a warp every WARPS-th slot of them, the first warp what the warps found
static KERNEL(1) bias_gradient_kernel(CONSTANT BiasArguments a) {
  float* shared = reinterpret_cast<float*>(shared_memory());  // (WARPS, 32)
  const int lane = thread_index() % 32, warp = thread_index() / 32, entry = block_index() * 32 + lane;
  float sum = 0.0f;
  if (entry < a.count)
    for (int slot = warp; slot < a.slots; slot += WARPS) sum += a.partials[int64_t(slot) * a.count + entry];
  shared[warp * 32 + lane] = sum;
  sync_block();
  if (warp > 0 || entry >= a.count) return;
  for (int w = 1; w < WARPS; ++w) sum += shared[w * 32 + lane];
  a.grad_bias[entry] = sum;
}

// What run_backward settles before anything is allocated
struct BackwardPlan {
  size_t query_bytes, key_bytes;  // of shared memory
  int query_stages, key_stages, blocks_per_head, slots;
  bool is_table_shared;

  int64_t partials(const Problem& problem) const { return int64_t(slots) * problem.heads * problem.table_size; }
};

template <class T, int D>
BackwardPlan plan_backward_at(const Problem& problem, bool has_bias, size_t shared_limit, int blocks_with_tables) {
  const View<const T> none;
  BackwardPlan plan{};
  const auto query_bytes = [&](bool has_tables, int stages) {
    Columns<T, D, BACKWARD_COLUMNS<T, D>> columns{problem, none, none, stages, 0};
    QueriesShared<T, D> shared;
    Carver measure{nullptr};
    shared.carve(measure, problem, columns, has_bias, has_tables);
    plan.is_table_shared = has_tables, plan.query_stages = stages, plan.query_bytes = measure.bytes;
    return measure.bytes;
  };
  const auto key_bytes = [&](int stages) {
    Columns<T, D, BACKWARD_COLUMNS<T, D>> columns{problem, none, none, stages, 0};
    KeysShared<T, D> shared;
    Carver measure{nullptr};
    shared.carve(measure, problem, columns);
    plan.key_stages = stages, plan.key_bytes = measure.bytes;
    return measure.bytes;
  };
  const bool fits = query_bytes(has_bias, 2) <= shared_limit || query_bytes(has_bias, 1) <= shared_limit ||
                    query_bytes(false, 2) <= shared_limit || query_bytes(false, 1) <= shared_limit;
  if (!fits || (key_bytes(2) > shared_limit && key_bytes(1) > shared_limit))
    throw std::runtime_error("neighborhood_attention: backend='cuda' needs more shared memory than this GPU has");
  const int tiles = problem.tile_count();
  plan.blocks_per_head = has_bias ? least(tiles, ceil_divide(blocks_with_tables, problem.heads)) : tiles;
  plan.slots = has_bias ? plan.blocks_per_head * (plan.is_table_shared ? 1 : WARPS) : 0;
  return plan;
}

template <class T, int D>
void run_backward_at(BackwardArguments<T> a, const BackwardPlan& plan, Stream stream) {
  const int heads = a.problem.heads;
  a.is_table_shared = plan.is_table_shared, a.slots = plan.slots;
  a.stages = plan.query_stages;
  launch(query_gradient_kernel<T, D>, a, plan.blocks_per_head * heads, plan.query_bytes, stream);
  a.stages = plan.key_stages;
  launch(key_gradient_kernel<T, D>, a, a.problem.tile_count() * heads, plan.key_bytes, stream);
  if (!a.bias) return;
  const BiasArguments bias{a.partials, a.grad_bias, plan.slots, int(heads * a.problem.table_size)};
  launch(bias_gradient_kernel, bias, ceil_divide(bias.count, 32), THREADS * sizeof(float), stream);
}

template <class T>
BackwardPlan plan_backward(
    const Problem& problem, bool has_bias, size_t shared_limit, int blocks_with_tables = BLOCKS_WITH_TABLES) {
  if (problem.depth <= 32) return plan_backward_at<T, 32>(problem, has_bias, shared_limit, blocks_with_tables);
  if (problem.depth <= 64) return plan_backward_at<T, 64>(problem, has_bias, shared_limit, blocks_with_tables);
  return plan_backward_at<T, 128>(problem, has_bias, shared_limit, blocks_with_tables);
}

template <class T>
void run_backward(const BackwardArguments<T>& a, const BackwardPlan& plan, Stream stream) {
  if (a.problem.depth <= 32) return run_backward_at<T, 32>(a, plan, stream);
  if (a.problem.depth <= 64) return run_backward_at<T, 64>(a, plan, stream);
  run_backward_at<T, 128>(a, plan, stream);
}

}  // namespace vantage::cuda
