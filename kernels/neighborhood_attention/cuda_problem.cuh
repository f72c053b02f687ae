// How a call is cut into tiles, and where the tokens of a tile lie.
//
// A tile is 64 tokens of one residue class, 8 x 8 of them where that costs least; a block of threads holds it as the
// rows of its matrices, and streams the union of the windows of those rows, a box of tokens, as columns.
// Calls with fewer than three axes get leading axes of length 1; a tile never reaches along the first of three.
#pragma once

#include "cuda_device.cuh"
#include "cuda_windows.cuh"

#include <stdexcept>

namespace vantage::cuda {

constexpr int ROWS = 64;                // of a tile, 16 per warp
constexpr int MAX_HEAD_DIM = 128;
constexpr float LOG2_E = 1.4426950408889634f;  // logits are held in units of log 2, as the hardware has exp2

// A (batch, axis 0, axis 1, axis 2, heads, head_dim) tensor; strides in elements, the last one is 1
template <class T>
struct View {
  T* data = nullptr;
  int64_t batch = 0, head = 0;
  int axis[3] = {0, 0, 0};
  bool is_aligned = false;  // every row of head_dim elements is a whole number of 16-byte words in place
};

// strides: in elements, of (batch, axis 0, axis 1, axis 2, heads)
template <class T>
View<T> make_view(T* data, const int64_t (&strides)[5], int64_t head_dim) {
  View<T> view{data, strides[0], strides[4]};
  for (int a = 0; a < 3; ++a) {
    view.axis[a] = int(strides[a + 1]);
    if (view.axis[a] != strides[a + 1]) throw std::runtime_error("neighborhood_attention: a stride is over 2^31");
  }
  view.is_aligned = reinterpret_cast<uintptr_t>(data) % 16 == 0 && head_dim * sizeof(T) % 16 == 0;
  for (int64_t stride : strides) view.is_aligned = view.is_aligned && stride * int64_t(sizeof(T)) % 16 == 0;
  return view;
}

struct Problem {
  int batch, heads, head_dim;
  float scale;
  Axis axis[3];
  int depth;                        // head_dim rounded up to the 16 of a matrix instruction
  int log2_tile_x;                  // a tile is ROWS / tile_x by tile_x tokens
  int tiles_of_class[3], tiles[3];  // along an axis: of one residue class, of all
  uint32_t table_stride[3], table_center;  // the bias of a pair lies at place of key - place of query + center
  int64_t table_size;

  HOST_DEVICE int tile_size(int a) const { return a == 0 ? 1 : a == 1 ? ROWS >> log2_tile_x : 1 << log2_tile_x; }
  HOST_DEVICE int tile_count() const { return batch * tiles[0] * tiles[1] * tiles[2]; }  // of one head
};

inline int longest_class(const Axis& axis) { return ceil_divide(axis.length, axis.dilation); }

// Columns of `tile` neighboring rows along an axis, at most
inline int64_t columns_along(const Axis& axis, int tile) {
  return least(longest_class(axis), tile + axis.kernel + axis.stride - 2);
}

inline Problem make_problem(int64_t batch, int64_t heads, int64_t head_dim, double scale, const Axis (&axis)[3]) {
  if (head_dim < 1 || head_dim > MAX_HEAD_DIM) throw std::runtime_error("neighborhood_attention: head_dim over 128");
  Problem problem{};
  problem.batch = int(batch), problem.heads = int(heads), problem.head_dim = int(head_dim);
  problem.scale = float(scale);
  problem.depth = ceil_divide(problem.head_dim, 16) * 16;
  double fewest_scores = 0;
  for (int log2_x = 6; log2_x >= 0; --log2_x) {
    const int x = 1 << log2_x, y = ROWS >> log2_x;
    const double scores = double(ceil_divide(longest_class(axis[1]), y)) * columns_along(axis[1], y) *
                          ceil_divide(longest_class(axis[2]), x) * columns_along(axis[2], x);
    if (log2_x == 6 || scores < fewest_scores) fewest_scores = scores, problem.log2_tile_x = log2_x;
  }
  double blocks = double(batch) * heads, tokens = 1;
  int64_t table = 1;
  for (int a = 2; a >= 0; --a) {
    const Axis& along = axis[a];
    problem.axis[a] = along;
    problem.tiles_of_class[a] = ceil_divide(longest_class(along), problem.tile_size(a));
    problem.tiles[a] = along.dilation * problem.tiles_of_class[a];
    problem.table_stride[a] = uint32_t(table);
    problem.table_center += uint32_t(table * (along.kernel - 1));
    table *= 2 * along.kernel - 1;
    blocks *= problem.tiles[a];
    tokens *= along.length;
  }
  problem.table_size = table;
  if (tokens > INT32_MAX) throw std::runtime_error("neighborhood_attention: over 2^31 tokens in a map");
  if (blocks > INT32_MAX) throw std::runtime_error("neighborhood_attention: over 2^31 tiles; split the batch");
  return problem;
}

// Tokens of one residue class per axis; origin and extent count within the classes
struct Box {
  int residue[3], origin[3], extent[3];

  HOST_DEVICE int count() const { return extent[0] * extent[1] * extent[2]; }
};

// The windows of queries, or of keys: the queries that see them
template <bool OF_KEYS>
DEVICE Range window_of(const Axis& axis, int length, int index) {
  return OF_KEYS ? inverse_window(axis, length, index) : window(axis, length, index);
}

// A tile, in shared memory
struct Tile {
  int batch;
  Box rows;     // may be empty
  Box columns;  // the smallest box that holds the windows of all rows
};

// A thread for each axis. After sync_block the tile is known to all.
template <bool ROWS_ARE_KEYS>
DEVICE void find_tile(Tile& tile, const Problem& problem, int index) {
  const int a = thread_index();
  if (a >= 3) return;
  for (int inner = 2; inner > a; --inner) index /= problem.tiles[inner];
  if (a == 0) tile.batch = index / problem.tiles[0];
  const int along = index % problem.tiles[a], size = problem.tile_size(a);
  const int residue = along / problem.tiles_of_class[a], origin = along % problem.tiles_of_class[a] * size;
  const int length = problem.axis[a].class_length(residue);
  const int extent = most(least(size, length - origin), 0);  // a shorter class may have nothing in its last tile
  tile.rows.residue[a] = tile.columns.residue[a] = residue;
  tile.rows.origin[a] = origin, tile.rows.extent[a] = extent;
  const int first = window_of<ROWS_ARE_KEYS>(problem.axis[a], length, origin).first;
  const int last = window_of<ROWS_ARE_KEYS>(problem.axis[a], length, origin + extent - 1).last;
  tile.columns.origin[a] = first, tile.columns.extent[a] = last - first + 1;
}

struct alignas(16) Token {
  int z, y, x;  // on the map; x < 0: no token
  uint32_t place;  // in the bias table, modulo 2^32

  template <class T>
  DEVICE int64_t offset(const View<T>& view) const {
    return int64_t(z) * view.axis[0] + int64_t(y) * view.axis[1] + int64_t(x) * view.axis[2];
  }
};

DEVICE Token token_at(const Problem& problem, const Box& box, int z, int y, int x) {
  z += box.origin[0], y += box.origin[1], x += box.origin[2];
  return {z * problem.axis[0].dilation + box.residue[0], y * problem.axis[1].dilation + box.residue[1],
          x * problem.axis[2].dilation + box.residue[2],
          z * problem.table_stride[0] + y * problem.table_stride[1] + x};
}

// Columns are numbered row-major in their box
DEVICE Token column_token(const Problem& problem, const Box& columns, int column) {
  if (column >= columns.count()) return {0, 0, -1, 0};
  const int line = column / columns.extent[2], z = line / columns.extent[1];
  return token_at(problem, columns, z, line - z * columns.extent[1], column - line * columns.extent[2]);
}

// Index of a token in a contiguous (batch, axis 0, axis 1, axis 2, heads) tensor
DEVICE int64_t flat_index(const Problem& problem, const Token& token, int batch, int head) {
  int64_t index = batch;
  index = index * problem.axis[0].length + token.z;
  index = index * problem.axis[1].length + token.y;
  index = index * problem.axis[2].length + token.x;
  return index * problem.heads + head;
}

// A row of a tile, in shared memory: its token and its windows, counted within the box of the columns
struct Row {
  Token token;
  Range windows[3];  // all empty without a token

  DEVICE bool sees_line(int z, int y) const {
    return windows[0].first <= z && z <= windows[0].last && windows[1].first <= y && y <= windows[1].last;
  }
};

template <bool ROWS_ARE_KEYS>
DEVICE void find_rows(Row* rows, const Problem& problem, const Tile& tile) {
  const int index = thread_index();
  if (index >= ROWS) return;
  Row& row = rows[index];
  const int y = index >> problem.log2_tile_x, x = index - (y << problem.log2_tile_x), step[3] = {0, y, x};
  const bool is_token = y < tile.rows.extent[1] && x < tile.rows.extent[2];
  row.token = is_token ? token_at(problem, tile.rows, 0, y, x) : Token{0, 0, -1, 0};
#pragma unroll
  for (int a = 0; a < 3; ++a) {
    const int length = problem.axis[a].class_length(tile.rows.residue[a]);
    const Range window = window_of<ROWS_ARE_KEYS>(problem.axis[a], length, tile.rows.origin[a] + step[a]);
    const int origin = tile.columns.origin[a];
    row.windows[a] = is_token ? Range{window.first - origin, window.last - origin} : Range{0, -1};
  }
}

// Which of `count` <= 32 columns from `first` on a row sees: bit c stands for first + c.
// Columns lie line by line, and so a window is a run of bits in every line that it meets.
DEVICE uint32_t column_bits(const Row& row, const Box& columns, int first, int count) {
  const int width = columns.extent[2], height = columns.extent[1], line = first / width;
  int z = line / height, y = line - z * height;
  uint32_t bits = 0;
  for (int start = line * width - first; start < count && z < columns.extent[0]; start += width) {
    const int from = most(start + row.windows[2].first, 0), to = least(start + row.windows[2].last, count - 1);
    if (row.sees_line(z, y) && from <= to) bits |= (~0u >> (31 - (to - from))) << from;
    if (++y == height) y = 0, ++z;
  }
  return bits;
}

}  // namespace vantage::cuda
