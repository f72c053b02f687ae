// Tiles in shared memory and their products: tensor cores for 16-bit numbers, plain multiply-adds for float.
//
// Both keep sums in the fragments of cuda_device.cuh, BLOCKS of 16 x 8 side by side. A warp owns 16 rows. `active` has
// a bit for every 16 columns, and those without it are not computed; it is the same in all lanes.
#pragma once

#include "cuda_problem.cuh"

namespace vantage::cuda {

template <class T>
constexpr bool IS_FLOAT = sizeof(T) == sizeof(float);
template <class T>
constexpr int WORD = 16 / sizeof(T);  // elements of 16 bytes, which are copied at a time

// Rows of a tile are one word longer than they need to be, so that eight in a column lie in different banks
template <class T>
HOST_DEVICE int pitch_of(const Problem& problem) {
  return problem.depth + WORD<T>;
}

// Hands out pieces of shared memory; on the host, from nullptr, it measures what they take
struct Carver {
  char* base;
  size_t bytes = 0;

  template <class T>
  HOST_DEVICE T* take(size_t count) {
    T* piece = reinterpret_cast<T*>(base + bytes);
    bytes += (count * sizeof(T) + 15) / 16 * 16;
    return piece;
  }
};

struct alignas(16) Word {
  uint32_t part[4];
};
struct alignas(16) Four {
  float x[4];
};
struct alignas(8) Two {
  float x[2];
};

DEVICE const Token& token_of(const Token& token) { return token; }
DEVICE const Token& token_of(const Row& row) { return row.token; }

// tile (COUNT, depth) <- the rows of `view` at `tokens`, zeros where there is no token and past head_dim.
// Complete after wait_copies and sync_block.
template <class T, int D, int COUNT, class Tokens>
DEVICE void load_tile(
    T* tile, const Problem& problem, const View<const T>& view, int batch, int head, const Tokens* tokens) {
  constexpr int WORDS = D / WORD<T>;  // of a row of the largest depth
  const int pitch = pitch_of<T>(problem);
  const T* origin = view.data + batch * view.batch + head * view.head;
#pragma unroll 2
  for (int i = thread_index(); i < COUNT * WORDS; i += THREADS) {
    const int row = i / WORDS, at = i % WORDS * WORD<T>;
    if (at >= problem.depth) continue;
    T* to = tile + row * pitch + at;
    const Token& token = token_of(tokens[row]);
    if (token.x < 0 || at >= problem.head_dim) {
      *reinterpret_cast<Word*>(to) = Word{};
      continue;
    }
    const T* from = origin + token.offset(view) + at;
    if (view.is_aligned) {
      copy_16_bytes(to, from);
    } else {
#pragma unroll 1
      for (int e = 0; e < WORD<T>; ++e) to[e] = at + e < problem.head_dim ? from[e] : T{};
    }
  }
}

// The reverse, without the padding
template <class T, int D>
DEVICE void store_tile(
    const T* tile, const Problem& problem, const View<T>& view, int batch, int head, const Row* rows) {
  constexpr int WORDS = D / WORD<T>;
  const int pitch = pitch_of<T>(problem);
  T* origin = view.data + batch * view.batch + head * view.head;
#pragma unroll 2
  for (int i = thread_index(); i < ROWS * WORDS; i += THREADS) {
    const int row = i / WORDS, at = i % WORDS * WORD<T>;
    const Token& token = rows[row].token;
    if (token.x < 0 || at >= problem.head_dim) continue;
    const T* from = tile + row * pitch + at;
    T* to = origin + token.offset(view) + at;
    if (view.is_aligned) {
      *reinterpret_cast<Word*>(to) = *reinterpret_cast<const Word*>(from);
    } else {
#pragma unroll 1
      for (int e = 0; e < WORD<T> && at + e < problem.head_dim; ++e) to[e] = from[e];
    }
  }
}

DEVICE void store_pair(float* to, float first, float second) { *reinterpret_cast<Two*>(to) = {{first, second}}; }
template <class T>
DEVICE void store_pair(T* to, float first, float second) {
  *reinterpret_cast<uint32_t*>(to) = pack(first, second, T{});
}

// The warp's 16 rows of a tile <- sums * factor, one factor for the lane's first row and one for its second
template <class T, int BLOCKS>
DEVICE void store_sums(
    T* rows, int pitch, const float (&sums)[BLOCKS][4], const float (&factor)[2], int depth) {
  const int lane = thread_index() % 32;
  T* to = rows + lane / 4 * pitch + lane % 4 * 2;
#pragma unroll
  for (int block = 0; block < BLOCKS; ++block) {
    if (8 * block >= depth) break;
    store_pair(to + 8 * block, sums[block][0] * factor[0], sums[block][1] * factor[0]);
    store_pair(to + 8 * pitch + 8 * block, sums[block][2] * factor[1], sums[block][3] * factor[1]);
  }
}

// Weights as a matrix in shared memory, where a lane can read what others computed: (16, 8 BLOCKS) of one warp
template <int BLOCKS>
constexpr int WEIGHT_PITCH = 8 * BLOCKS + 4;

template <int BLOCKS>
DEVICE void share_weights(float* shared, const float (&weights)[BLOCKS][4]) {
  sync_warp();  // nobody reads the previous ones any more
  const float one[2] = {1.0f, 1.0f};
  store_sums(shared, WEIGHT_PITCH<BLOCKS>, weights, one, 8 * BLOCKS);
  sync_warp();
}

template <int D, int BLOCKS, class T>
DEVICE void multiply_transposed_on_tensor_cores(
    float (&sums)[BLOCKS][4], const T* rows, const T* columns, int pitch, int depth, uint32_t active) {
  const int lane = thread_index() % 32;
  const T* row = rows + lane % 16 * pitch + lane / 16 * 8;
  const T* column = columns + (lane % 8 + lane / 16 * 8) * pitch + lane / 8 % 2 * 8;
#pragma unroll
  for (int d = 0; d < D; d += 16) {
    if (d >= depth) break;
    uint32_t a[4];
    load_matrices(a, row + d);
#pragma unroll
    for (int pair = 0; pair < BLOCKS / 2; ++pair) {
      if (!(active >> pair & 1)) continue;
      uint32_t b[4];
      load_matrices(b, column + 16 * pair * pitch + d);
      multiply_add(sums[2 * pair], a, b[0], b[1], T{});
      multiply_add(sums[2 * pair + 1], a, b[2], b[3], T{});
    }
  }
}

DEVICE Four four_at(const float* at) { return *reinterpret_cast<const Four*>(at); }

template <int BLOCKS>
DEVICE void multiply_transposed_floats(
    float (&sums)[BLOCKS][4], const float* rows, const float* columns, int pitch, int depth, uint32_t active) {
  const int lane = thread_index() % 32;
  const float* row = rows + lane / 4 * pitch;
  const float* column = columns + lane % 4 * 2 * pitch;
#pragma unroll 2
  for (int d = 0; d < depth; d += 4) {
    const Four upper = four_at(row + d), lower = four_at(row + 8 * pitch + d);
#pragma unroll
    for (int block = 0; block < BLOCKS; ++block) {
      if (!(active >> block / 2 & 1)) continue;
      const Four left = four_at(column + 8 * block * pitch + d), right = four_at(column + (8 * block + 1) * pitch + d);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        sums[block][0] += upper.x[e] * left.x[e];
        sums[block][1] += upper.x[e] * right.x[e];
        sums[block][2] += lower.x[e] * left.x[e];
        sums[block][3] += lower.x[e] * right.x[e];
      }
    }
  }
}

// sums (16 x 8 BLOCKS) += rows (16 x depth) columns (8 BLOCKS x depth)^T
template <int D, int BLOCKS, class T>
DEVICE void multiply_transposed(
    float (&sums)[BLOCKS][4], const T* rows, const T* columns, int pitch, int depth, uint32_t active) {
  if constexpr (IS_FLOAT<T>)
    multiply_transposed_floats(sums, rows, columns, pitch, depth, active);
  else
    multiply_transposed_on_tensor_cores<D>(sums, rows, columns, pitch, depth, active);
}

template <int D, int BLOCKS, class T>
DEVICE void multiply_on_tensor_cores(
    float (&sums)[D / 8][4], const float (&weights)[BLOCKS][4], const T* columns, int pitch, int depth,
    uint32_t active) {
  const int lane = thread_index() % 32;
  const T* column = columns + lane % 16 * pitch + lane / 16 * 8;
#pragma unroll
  for (int pair = 0; pair < BLOCKS / 2; ++pair) {
    if (!(active >> pair & 1)) continue;
    const float(&left)[4] = weights[2 * pair], (&right)[4] = weights[2 * pair + 1];
    const uint32_t a[4] = {pack(left[0], left[1], T{}), pack(left[2], left[3], T{}), pack(right[0], right[1], T{}),
                           pack(right[2], right[3], T{})};
#pragma unroll
    for (int d = 0; d < D; d += 16) {
      if (d >= depth) break;
      uint32_t b[4];
      load_transposed_matrices(b, column + 16 * pair * pitch + d);
      multiply_add(sums[d / 8], a, b[0], b[1], T{});
      multiply_add(sums[d / 8 + 1], a, b[2], b[3], T{});
    }
  }
}

// `shared` from share_weights
template <int D, int BLOCKS>
DEVICE void multiply_floats(
    float (&sums)[D / 8][4], const float* shared, const float* columns, int pitch, int depth, uint32_t active) {
  const int lane = thread_index() % 32;
  const float* row = shared + lane / 4 * WEIGHT_PITCH<BLOCKS>;
  columns += lane % 4 * 2;
#pragma unroll 1
  for (int c = 0; c < 8 * BLOCKS; c += 4) {
    if (!(active >> c / 16 & 1)) continue;
    const Four upper = four_at(row + c), lower = four_at(row + 8 * WEIGHT_PITCH<BLOCKS> + c);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
#pragma unroll
      for (int block = 0; block < D / 8; ++block) {
        if (8 * block >= depth) break;
        const Two column = *reinterpret_cast<const Two*>(columns + (c + e) * pitch + 8 * block);
        sums[block][0] += upper.x[e] * column.x[0];
        sums[block][1] += upper.x[e] * column.x[1];
        sums[block][2] += lower.x[e] * column.x[0];
        sums[block][3] += lower.x[e] * column.x[1];
      }
    }
  }
}

// sums (16 x D) += weights (16 x 8 BLOCKS) columns (8 BLOCKS x depth): sums of one product are a factor of the next.
// Floats take the weights from `shared`, where share_weights put them.
template <int D, int BLOCKS, class T>
DEVICE void multiply(
    float (&sums)[D / 8][4], const float (&weights)[BLOCKS][4], const float* shared, const T* columns, int pitch,
    int depth, uint32_t active) {
  if constexpr (IS_FLOAT<T>)
    multiply_floats<D, BLOCKS>(sums, shared, columns, pitch, depth, active);
  else
    multiply_on_tensor_cores<D>(sums, weights, columns, pitch, depth, active);
}

}  // namespace vantage::cuda
