"""Forward kernel: a program keeps a tile of queries and streams tiles of keys over the union of their windows.

Softmax is summed as the keys come by (Milakov and Gimelshein, 2018, arXiv:1805.02867): per query the highest logit so
far, the sum of exponentials relative to it, and the values mixed with them. Keys that a query does not see, of the
tile or past the end of the map, are masked from indices.
"""

import triton
import triton.language as tl

from vantage.ops.neighborhood_attention.triton_tiles import (
    UNSPECIALIZED,
    are_inside,
    base_2_logits,
    keys_of,
    load_rows,
    locate,
    multiply,
    on_map,
    places,
    sees,
    store_rows,
    table_index,
    unflatten,
    window,
)

LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def attend_kernel(
    q, k, v, bias, out, lse,
    q_b, q_z, q_y, q_x, q_h, q_d, k_b, k_z, k_y, k_x, k_h, k_d, v_b, v_z, v_y, v_x, v_h, v_d,
    heads, scale, length_z, length_y, length_x, kernel_z, kernel_y, kernel_x, dilation_z, dilation_y, dilation_x,
    STRIDE_Z: tl.constexpr, STRIDE_Y: tl.constexpr, STRIDE_X: tl.constexpr,
    CAUSAL_Z: tl.constexpr, CAUSAL_Y: tl.constexpr, CAUSAL_X: tl.constexpr,
    QUERIES_Z: tl.constexpr, QUERIES_Y: tl.constexpr, QUERIES_X: tl.constexpr,
    KEYS_Z: tl.constexpr, KEYS_Y: tl.constexpr, KEYS_X: tl.constexpr,
    AXES: tl.constexpr, HAS_BIAS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    head = (program % heads).to(tl.int64)
    batch, residue_z, residue_y, residue_x, class_z, class_y, class_x, z, y, x = locate(
        program // heads, length_z, length_y, length_x, dilation_z, dilation_y, dilation_x,
        QUERIES_Z, QUERIES_Y, QUERIES_X,
    )  # fmt: skip
    q += batch * q_b + head * q_h
    k += batch * k_b + head * k_h
    v += batch * v_b + head * v_h
    if HAS_BIAS:
        bias += head * ((2 * kernel_z - 1) * (2 * kernel_y - 1) * (2 * kernel_x - 1))

    query_z, query_y, query_x = places(z, y, x, QUERIES_Z, QUERIES_Y, QUERIES_X)
    is_query = are_inside(query_z, query_y, query_x, class_z, class_y, class_x)
    # places past the end repeat the last query: they see keys and stay finite, and nobody stores them
    query_z = tl.minimum(query_z, class_z - 1)
    query_y = tl.minimum(query_y, class_y - 1)
    query_x = tl.minimum(query_x, class_x - 1)
    map_z, map_y, map_x = on_map(
        query_z, query_y, query_x, residue_z, residue_y, residue_x, dilation_z, dilation_y, dilation_x
    )
    row = (((batch * length_z + map_z) * length_y + map_y) * length_x + map_x) * heads + head  # of out and lse
    q_rows = load_rows(q, map_z * q_z + map_y * q_y + map_x * q_x, is_query, q_d, HEAD_DIM, BLOCK_D)
    q_entry = table_index(query_z, query_y, query_x, kernel_y, kernel_x)
    q_entry -= table_index(kernel_z - 1, kernel_y - 1, kernel_x - 1, kernel_y, kernel_x)

    first_z, last_z = window(query_z, class_z, kernel_z, STRIDE_Z, CAUSAL_Z)
    first_y, last_y = window(query_y, class_y, kernel_y, STRIDE_Y, CAUSAL_Y)
    first_x, last_x = window(query_x, class_x, kernel_x, STRIDE_X, CAUSAL_X)
    start_z, count_z = keys_of(z, class_z, kernel_z, QUERIES_Z, STRIDE_Z, CAUSAL_Z)
    start_y, count_y = keys_of(y, class_y, kernel_y, QUERIES_Y, STRIDE_Y, CAUSAL_Y)
    start_x, count_x = keys_of(x, class_x, kernel_x, QUERIES_X, STRIDE_X, CAUSAL_X)
    tiles_z, tiles_y, tiles_x = tl.cdiv(count_z, KEYS_Z), tl.cdiv(count_y, KEYS_Y), tl.cdiv(count_x, KEYS_X)

    highest = tl.full([QUERIES_Z * QUERIES_Y * QUERIES_X], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES_Z * QUERIES_Y * QUERIES_X], tl.float32)
    mixed = tl.zeros([QUERIES_Z * QUERIES_Y * QUERIES_X, BLOCK_D], tl.float32)
    for tile in range(0, tiles_z * tiles_y * tiles_x):
        tile_z, tile_y, tile_x = unflatten(tile, tiles_y, tiles_x)
        key_z, key_y, key_x = places(
            start_z + tile_z * KEYS_Z, start_y + tile_y * KEYS_Y, start_x + tile_x * KEYS_X, KEYS_Z, KEYS_Y, KEYS_X
        )
        is_key = are_inside(key_z, key_y, key_x, class_z, class_y, class_x)
        on_z, on_y, on_x = on_map(
            key_z, key_y, key_x, residue_z, residue_y, residue_x, dilation_z, dilation_y, dilation_x
        )
        k_rows = load_rows(k, on_z * k_z + on_y * k_y + on_x * k_x, is_key, k_d, HEAD_DIM, BLOCK_D)
        v_rows = load_rows(v, on_z * v_z + on_y * v_y + on_x * v_x, is_key, v_d, HEAD_DIM, BLOCK_D)
        k_entry = table_index(key_z, key_y, key_x, kernel_y, kernel_x)

        is_seen = sees(first_z, last_z, first_y, last_y, first_x, last_x, key_z, key_y, key_x, AXES, False)
        entry = k_entry[None, :] - q_entry[:, None]  # (queries, keys)
        logits = base_2_logits(q_rows, k_rows, scale, bias, entry, is_seen, HAS_BIAS)
        logits = tl.where(is_seen, logits, float("-inf"))
        risen = tl.maximum(highest, tl.max(logits, 1))
        level = tl.where(risen == float("-inf"), 0.0, risen)  # no key yet: -inf - -inf would be NaN
        weights = tl.exp2(logits - level[:, None])
        shrink = tl.exp2(highest - level)
        total = total * shrink + tl.sum(weights, 1)
        mixed = multiply(weights.to(v_rows.dtype), v_rows, mixed * shrink[:, None])
        highest = risen

    store_rows(out, row * HEAD_DIM, is_query, mixed / total[:, None], HEAD_DIM, BLOCK_D)
    tl.store(lse + row, (highest + tl.log2(total)) * LN_2, mask=is_query)
