// The columns of a tile: streamed through shared memory in chunks, masked, and the logits of a lane's part of them.
#pragma once

#include "cuda_matrix.cuh"

namespace vantage::cuda {

// Bits of two rows, 32 columns in a word
template <int COLUMNS>
using Bits = uint32_t[2][(COLUMNS + 31) / 32];

// Two tensors of columns (keys and values, or queries and gradients), COLUMNS at a time.
// While one chunk is used the next is copied, if there is shared memory for two stages.
template <class T, int D, int COLUMNS>
struct Columns {
  static constexpr int WORDS = (COLUMNS + 31) / 32;

  const Problem& problem;
  const View<const T>&first_view, &second_view;
  int stages, head;
  const Tile* tile;
  const Row* rows;
  T *first_tiles, *second_tiles;  // (stages, COLUMNS, pitch)
  Token* token_ring;              // (3, COLUMNS): of the chunks in use, copied and to be copied
  uint32_t* bit_ring;             // (2, ROWS, WORDS): which columns of the chunks in use and copied a row sees

  HOST_DEVICE void carve(Carver& shared) {
    const size_t size = size_t(COLUMNS) * pitch_of<T>(problem);
    first_tiles = shared.take<T>(stages * size);
    second_tiles = shared.take<T>(stages * size);
    token_ring = shared.take<Token>(3 * COLUMNS);
    bit_ring = shared.take<uint32_t>(2 * ROWS * WORDS);
  }
  DEVICE int chunks() const { return ceil_divide(tile->columns.count(), COLUMNS); }
  DEVICE Token* tokens(int chunk) const { return token_ring + chunk % 3 * COLUMNS; }
  DEVICE T* first(int chunk) const { return first_tiles + chunk % stages * COLUMNS * pitch_of<T>(problem); }
  DEVICE T* second(int chunk) const { return second_tiles + chunk % stages * COLUMNS * pitch_of<T>(problem); }

  // Tokens of `count` chunks from `chunk` on, known to all after sync_block. Two before the first advance.
  DEVICE void find(int chunk, int count = 1) {
#pragma unroll 1
    for (int i = thread_index(); i < count * COLUMNS; i += THREADS)
      tokens(chunk)[i] = column_token(problem, tile->columns, chunk * COLUMNS + i);
  }
  DEVICE int first_step() const { return 1 - stages; }
  // Chunks are used in order from first_step on. A negative one only starts copies (after find and sync_block); for
  // the others, all that was copied so far can be read now. `more(chunk)` copies what else belongs to a chunk.
  template <class More>
  DEVICE bool advance(int chunk, More more) {
    const int next = chunk + stages - 1;
    if (chunk >= 0) {
      if (stages == 2) wait_copies();
      sync_block();  // and the previous chunk is used no more
    }
    if (next < chunks()) {
      load_tile<T, D, COLUMNS>(first(next), problem, first_view, tile->batch, head, tokens(next));
      load_tile<T, D, COLUMNS>(second(next), problem, second_view, tile->batch, head, tokens(next));
      more(next);
      if (thread_index() < ROWS * WORDS) {
        const int row = thread_index() / WORDS, word = thread_index() % WORDS;
        bit_ring[next % 2 * ROWS * WORDS + thread_index()] =
            column_bits(rows[row], tile->columns, next * COLUMNS + 32 * word, least(COLUMNS, 32));
      }
      if (next > 0 && next + 1 < chunks()) find(next + 1);
    }
    if (stages == 1) {
      wait_copies();
      sync_block();
    }
    return chunk >= 0;
  }
  // Bits of `row` and row + 8; returns a bit for every group of 16 columns that any row of the warp sees
  DEVICE uint32_t read_bits(Bits<COLUMNS>& bits, int chunk, int row) const {
    const uint32_t* from = bit_ring + (chunk % 2 * ROWS + row) * WORDS;
    uint32_t active = 0;
#pragma unroll
    for (int word = 0; word < WORDS; ++word) {
      bits[0][word] = from[word], bits[1][word] = from[8 * WORDS + word];
      const uint32_t any = or_over_warp(bits[0][word] | bits[1][word]);
      active |= ((any & 0xffff ? 1 : 0) | (any >> 16 ? 2 : 0)) << 2 * word;
    }
    return active;
  }
};

// body(block, element) for the lane's elements in active groups of columns
template <int BLOCKS, class Body>
DEVICE void each_active(uint32_t active, Body body) {
#pragma unroll
  for (int block = 0; block < BLOCKS; ++block) {
    if (!(active >> block / 2 & 1)) continue;
#pragma unroll
    for (int e = 0; e < 4; ++e) body(block, e);
  }
}

// The bias of two rows of a lane and the columns they see
template <bool ROWS_ARE_KEYS>
struct LaneBias {
  const float* table;  // of the head, or null
  uint32_t place[2];   // an entry lies at place of key - place of query + center

  DEVICE LaneBias(const Problem& problem, const float* tables, int head, const Token& upper, const Token& lower)
      : table(tables ? tables + head * problem.table_size : nullptr) {
    const uint32_t center = ROWS_ARE_KEYS ? problem.table_center : -problem.table_center;
    place[0] = upper.place + center, place[1] = lower.place + center;
  }
  DEVICE float at(int row, const Token& column) const {
    return read_only(table + (ROWS_ARE_KEYS ? place[row] - column.place : column.place - place[row]));
  }
};

// scores: products in, logits in units of log 2 out, -inf where the row does not see the column
template <int COLUMNS, bool ROWS_ARE_KEYS>
DEVICE void mask(
    float (&scores)[COLUMNS / 8][4], const Bits<COLUMNS>& bits, uint32_t active, float scale,
    const LaneBias<ROWS_ARE_KEYS>& bias, const Token* tokens) {
  const int column = thread_index() % 4 * 2;
  const auto sees = [&](int block, int e) {
    return bits[e / 2][block / 4] >> column >> (8 * (block % 4) + e % 2) & 1;
  };
  scale *= LOG2_E;
  each_active<COLUMNS / 8>(active, [&](int block, int e) {
    scores[block][e] = sees(block, e) ? scores[block][e] * scale : -INFINITY;
  });
  if (!bias.table) return;
  each_active<COLUMNS / 8>(active, [&](int block, int e) {
    if (sees(block, e)) scores[block][e] += bias.at(e / 2, tokens[8 * block + column + e % 2]) * LOG2_E;
  });
}

}  // namespace vantage::cuda
