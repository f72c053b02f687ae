"""What the Triton kernels share: which tokens a tile holds, where they lie, who sees whom. Importing imports Triton.

Everywhere three axes z, y, x: a call with fewer has leading axes of length 1. A program works inside one residue
class of every dilated axis, so a place on an axis is an index inside its class, and `windows.py` applies with
dilation 1; only addresses multiply by the dilation. A tile is a box of places, flattened row-major into the rows
(or columns) of a matrix product. Keys are read where they lie: nothing is gathered or permuted beforehand.

No atomics: each output element has one writer and a fixed order of summation, so results repeat bit for bit.
float16 and bfloat16 are multiplied as they are, float32 in full precision; all sums are float32.
Addresses are int64, because a map may have more than 2^31 elements.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)

# Plain numbers that change from call to call: specialising on them would recompile for every map size.
SIZES = [f"{what}_{axis}" for what in ("length", "kernel", "dilation") for axis in "zyx"]
UNSPECIALIZED = ["heads", "scale", *SIZES]


@triton.jit
def window(place, length, kernel, STRIDE: tl.constexpr, IS_CAUSAL: tl.constexpr):
    """First and last key, inclusive, that the queries at `place` see in a class of `length`: see windows.py."""
    group = place // STRIDE * STRIDE
    if IS_CAUSAL:
        first = tl.maximum(tl.minimum(group + STRIDE - 1, length - 1) - kernel + 1, 0)
        last = place
    else:
        leader = tl.minimum(group + STRIDE // 2, length - 1)
        first = tl.minimum(tl.maximum(leader - kernel // 2, 0), length - kernel)
        last = first + kernel - 1
    return first, last


@triton.jit
def keys_of(start, length, kernel, TILE: tl.constexpr, STRIDE: tl.constexpr, IS_CAUSAL: tl.constexpr):
    """First key and number of keys that any query of the tile at `start` sees; bounds move with the query."""
    first, _ = window(tl.minimum(start, length - 1), length, kernel, STRIDE, IS_CAUSAL)
    _, last = window(tl.minimum(start + TILE - 1, length - 1), length, kernel, STRIDE, IS_CAUSAL)
    return first, last - first + 1


@triton.jit
def queries_of(start, length, kernel, TILE: tl.constexpr, STRIDE: tl.constexpr, IS_CAUSAL: tl.constexpr):
    """First query and number of queries that see any key of the tile at `start`: the inverse of `window`.

    No operand of a division is negative: STRIDE <= kernel.
    """
    first_key = tl.minimum(start, length - 1)
    last_key = tl.minimum(start + TILE - 1, length - 1)
    if IS_CAUSAL:
        # window(i) ends at i, and begins at or before last_key while the leader of i is <= last_key + kernel - 1
        first = first_key
        reach = last_key + kernel - 1
        groups = (reach - (STRIDE - 1)) // STRIDE + 1
    else:
        # window(i) ends at or after first_key once the leader of i is >= first_key - kernel + 1 + kernel // 2
        wanted = tl.maximum(first_key - kernel + 1 + kernel // 2 - STRIDE // 2, 0)
        first = (wanted + STRIDE - 1) // STRIDE * STRIDE
        # at the left border every window begins at 0 and ends at kernel - 1
        first = tl.where(first_key < kernel, 0, first)
        # it begins at or before last_key while the leader of i is <= last_key + kernel // 2
        reach = last_key + kernel // 2
        groups = (reach - STRIDE // 2) // STRIDE + 1
        # at the right border every window begins at length - kernel
        reach = tl.where(last_key >= length - kernel, length, reach)
    # the leader of the last group is length - 1 where the group is cut short
    last = tl.where(reach >= length - 1, length - 1, tl.minimum(groups * STRIDE, length) - 1)
    return first, last - first + 1


@triton.jit
def unflatten(index, size_y, size_x):
    return index // (size_y * size_x), index // size_x % size_y, index % size_x


@triton.jit
def table_index(z, y, x, kernel_y, kernel_x):
    """Row-major index in a bias table. Linear: of key - query + kernel - 1 it is the sum of the three's."""
    return (z * (2 * kernel_y - 1) + y) * (2 * kernel_x - 1) + x


@triton.jit
def cut(index, length, dilation, TILE: tl.constexpr):
    """One digit of a tile's index: the digits left, residue, length of its class, first place of the tile."""
    count = tl.cdiv(tl.cdiv(length, dilation), TILE) * dilation  # the longest class decides
    digit = index % count
    residue = digit % dilation
    return index // count, residue, (length - residue + dilation - 1) // dilation, digit // dilation * TILE


@triton.jit
def locate(
    index, length_z, length_y, length_x, dilation_z, dilation_y, dilation_x,
    TILE_Z: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr,
):  # fmt: skip
    """Image, and per axis residue, class length and start, of a tile. Tiles past the end of a shorter class exist."""
    index, residue_x, class_x, x = cut(index, length_x, dilation_x, TILE_X)
    index, residue_y, class_y, y = cut(index, length_y, dilation_y, TILE_Y)
    index, residue_z, class_z, z = cut(index, length_z, dilation_z, TILE_Z)
    return index.to(tl.int64), residue_z, residue_y, residue_x, class_z, class_y, class_x, z, y, x


@triton.jit
def places(z, y, x, TILE_Z: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr):
    """Places of the TILE_Z * TILE_Y * TILE_X tokens of a tile."""
    in_z, in_y, in_x = unflatten(tl.arange(0, TILE_Z * TILE_Y * TILE_X), TILE_Y, TILE_X)
    return z + in_z, y + in_y, x + in_x


@triton.jit
def are_inside(z, y, x, class_z, class_y, class_x):
    return (z < class_z) & (y < class_y) & (x < class_x)


@triton.jit
def on_map(z, y, x, residue_z, residue_y, residue_x, dilation_z, dilation_y, dilation_x):
    """Places in a residue class -> positions on the map."""
    z = (residue_z + z * dilation_z).to(tl.int64)
    y = (residue_y + y * dilation_y).to(tl.int64)
    x = (residue_x + x * dilation_x).to(tl.int64)
    return z, y, x


@triton.jit
def load_rows(pointer, offset, is_row, stride_d, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """(rows, BLOCK_D): the vectors at `offset` (int64), zero where is_row is false and past HEAD_DIM."""
    d = tl.arange(0, BLOCK_D)
    mask = is_row[:, None] & (d < HEAD_DIM)[None, :]
    return tl.load(pointer + offset[:, None] + (d.to(tl.int64) * stride_d)[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(pointer, offset, is_row, value, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    d = tl.arange(0, BLOCK_D)
    mask = is_row[:, None] & (d < HEAD_DIM)[None, :]
    tl.store(pointer + offset[:, None] + d[None, :], value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def multiply(a, b, total=None):
    if INTERPRETED:  # the interpreter would multiply the bit patterns of bfloat16
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def sees(
    first_z, last_z, first_y, last_y, first_x, last_x, key_z, key_y, key_x,
    AXES: tl.constexpr, KEYS_FIRST: tl.constexpr,
):  # fmt: skip
    """(queries, keys), or (keys, queries): whether the query's window has the key."""
    QUERY: tl.constexpr = 0 if KEYS_FIRST else 1
    KEY: tl.constexpr = 1 - QUERY
    key = tl.expand_dims(key_x, KEY)
    is_seen = (key >= tl.expand_dims(first_x, QUERY)) & (key <= tl.expand_dims(last_x, QUERY))
    if AXES > 1:
        key = tl.expand_dims(key_y, KEY)
        is_seen &= (key >= tl.expand_dims(first_y, QUERY)) & (key <= tl.expand_dims(last_y, QUERY))
    if AXES > 2:
        key = tl.expand_dims(key_z, KEY)
        is_seen &= (key >= tl.expand_dims(first_z, QUERY)) & (key <= tl.expand_dims(last_z, QUERY))
    return is_seen


@triton.jit
def base_2_logits(rows_a, rows_b, scale, bias, entry, is_seen, HAS_BIAS: tl.constexpr):
    """(a, b): logits times log2(e), for exp2; bias points at the head's table, entry (a, b) into it."""
    logits = multiply(rows_a, tl.trans(rows_b)) * (scale * LOG2_E)
    if HAS_BIAS:
        logits += tl.load(bias + entry, mask=is_seen, other=0.0) * LOG2_E
    return logits
