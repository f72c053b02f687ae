"""Backward kernels: with P = exp(logits - lse), delta_i = grad_out_i . out_i - grad_lse_i and
dS_ij = P_ij (grad_out_i . v_j - delta_i), for queries i and keys j that i sees:

    grad_query_kernel   a tile of queries stays, keys stream by as in the forward: grad_q_i = scale sum_j dS_ij k_j.
                        Runs first: it also writes delta.
    grad_key_kernel     a tile of keys stays, queries stream by: all that see any of its keys, a contiguous range per
                        axis, wider at the borders because windows are shifted there.
                        grad_k_j = scale sum_i dS_ij q_i,  grad_v_j = sum_i P_ij grad_out_i
    grad_bias_kernel    the shift between a tile of queries and a tile of keys stays and all tiles of queries stream
                        by: an element of the tile of dS is then always of one entry of the table. The sums go to a
                        workspace, whose diagonals the caller adds.
"""

import triton
import triton.language as tl

from vantage.ops.neighborhood_attention.triton_tiles import (
    LOG2_E,
    UNSPECIALIZED,
    are_inside,
    base_2_logits,
    keys_of,
    load_rows,
    locate,
    multiply,
    on_map,
    places,
    queries_of,
    sees,
    store_rows,
    table_index,
    unflatten,
    window,
)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def grad_query_kernel(
    q, k, v, bias, out, lse, grad_out, grad_lse, grad_q, delta,
    q_b, q_z, q_y, q_x, q_h, q_d, k_b, k_z, k_y, k_x, k_h, k_d, v_b, v_z, v_y, v_x, v_h, v_d,
    heads, scale, length_z, length_y, length_x, kernel_z, kernel_y, kernel_x, dilation_z, dilation_y, dilation_x,
    STRIDE_Z: tl.constexpr, STRIDE_Y: tl.constexpr, STRIDE_X: tl.constexpr,
    CAUSAL_Z: tl.constexpr, CAUSAL_Y: tl.constexpr, CAUSAL_X: tl.constexpr,
    QUERIES_Z: tl.constexpr, QUERIES_Y: tl.constexpr, QUERIES_X: tl.constexpr,
    KEYS_Z: tl.constexpr, KEYS_Y: tl.constexpr, KEYS_X: tl.constexpr,
    AXES: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_GRAD_LSE: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
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
    map_z, map_y, map_x = on_map(
        query_z, query_y, query_x, residue_z, residue_y, residue_x, dilation_z, dilation_y, dilation_x
    )
    row = (((batch * length_z + map_z) * length_y + map_y) * length_x + map_x) * heads + head
    q_rows = load_rows(q, map_z * q_z + map_y * q_y + map_x * q_x, is_query, q_d, HEAD_DIM, BLOCK_D)
    g_rows = load_rows(grad_out, row * HEAD_DIM, is_query, 1, HEAD_DIM, BLOCK_D)
    o_rows = load_rows(out, row * HEAD_DIM, is_query, 1, HEAD_DIM, BLOCK_D)
    q_delta = tl.sum(g_rows.to(tl.float32) * o_rows.to(tl.float32), 1)
    if HAS_GRAD_LSE:
        q_delta -= tl.load(grad_lse + row, mask=is_query, other=0.0)
    tl.store(delta + row, q_delta, mask=is_query)
    q_lse = tl.load(lse + row, mask=is_query, other=0.0) * LOG2_E
    q_entry = table_index(query_z, query_y, query_x, kernel_y, kernel_x)
    q_entry -= table_index(kernel_z - 1, kernel_y - 1, kernel_x - 1, kernel_y, kernel_x)

    first_z, last_z = window(query_z, class_z, kernel_z, STRIDE_Z, CAUSAL_Z)
    first_y, last_y = window(query_y, class_y, kernel_y, STRIDE_Y, CAUSAL_Y)
    first_x, last_x = window(query_x, class_x, kernel_x, STRIDE_X, CAUSAL_X)
    start_z, count_z = keys_of(z, class_z, kernel_z, QUERIES_Z, STRIDE_Z, CAUSAL_Z)
    start_y, count_y = keys_of(y, class_y, kernel_y, QUERIES_Y, STRIDE_Y, CAUSAL_Y)
    start_x, count_x = keys_of(x, class_x, kernel_x, QUERIES_X, STRIDE_X, CAUSAL_X)
    tiles_z, tiles_y, tiles_x = tl.cdiv(count_z, KEYS_Z), tl.cdiv(count_y, KEYS_Y), tl.cdiv(count_x, KEYS_X)

    q_grad = tl.zeros([QUERIES_Z * QUERIES_Y * QUERIES_X, BLOCK_D], tl.float32)
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
        is_seen &= is_query[:, None] & is_key[None, :]
        entry = k_entry[None, :] - q_entry[:, None]  # (queries, keys)
        logits = base_2_logits(q_rows, k_rows, scale, bias, entry, is_seen, HAS_BIAS)
        weights = tl.where(is_seen, tl.exp2(logits - q_lse[:, None]), 0.0)
        grad_logits = weights * (multiply(g_rows, tl.trans(v_rows)) - q_delta[:, None])
        q_grad = multiply(grad_logits.to(k_rows.dtype), k_rows, q_grad)

    store_rows(grad_q, row * HEAD_DIM, is_query, q_grad * scale, HEAD_DIM, BLOCK_D)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def grad_key_kernel(
    q, k, v, bias, lse, delta, grad_out, grad_k, grad_v,
    q_b, q_z, q_y, q_x, q_h, q_d, k_b, k_z, k_y, k_x, k_h, k_d, v_b, v_z, v_y, v_x, v_h, v_d,
    heads, scale, length_z, length_y, length_x, kernel_z, kernel_y, kernel_x, dilation_z, dilation_y, dilation_x,
    STRIDE_Z: tl.constexpr, STRIDE_Y: tl.constexpr, STRIDE_X: tl.constexpr,
    CAUSAL_Z: tl.constexpr, CAUSAL_Y: tl.constexpr, CAUSAL_X: tl.constexpr,
    KEYS_Z: tl.constexpr, KEYS_Y: tl.constexpr, KEYS_X: tl.constexpr,
    QUERIES_Z: tl.constexpr, QUERIES_Y: tl.constexpr, QUERIES_X: tl.constexpr,
    AXES: tl.constexpr, HAS_BIAS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    head = (program % heads).to(tl.int64)
    batch, residue_z, residue_y, residue_x, class_z, class_y, class_x, z, y, x = locate(
        program // heads, length_z, length_y, length_x, dilation_z, dilation_y, dilation_x, KEYS_Z, KEYS_Y, KEYS_X
    )
    q += batch * q_b + head * q_h
    k += batch * k_b + head * k_h
    v += batch * v_b + head * v_h
    if HAS_BIAS:
        bias += head * ((2 * kernel_z - 1) * (2 * kernel_y - 1) * (2 * kernel_x - 1))

    key_z, key_y, key_x = places(z, y, x, KEYS_Z, KEYS_Y, KEYS_X)
    is_key = are_inside(key_z, key_y, key_x, class_z, class_y, class_x)
    map_z, map_y, map_x = on_map(
        key_z, key_y, key_x, residue_z, residue_y, residue_x, dilation_z, dilation_y, dilation_x
    )
    k_rows = load_rows(k, map_z * k_z + map_y * k_y + map_x * k_x, is_key, k_d, HEAD_DIM, BLOCK_D)
    v_rows = load_rows(v, map_z * v_z + map_y * v_y + map_x * v_x, is_key, v_d, HEAD_DIM, BLOCK_D)
    k_row = (((batch * length_z + map_z) * length_y + map_y) * length_x + map_x) * heads + head
    k_entry = table_index(key_z, key_y, key_x, kernel_y, kernel_x)
    k_entry += table_index(kernel_z - 1, kernel_y - 1, kernel_x - 1, kernel_y, kernel_x)

    start_z, count_z = queries_of(z, class_z, kernel_z, KEYS_Z, STRIDE_Z, CAUSAL_Z)
    start_y, count_y = queries_of(y, class_y, kernel_y, KEYS_Y, STRIDE_Y, CAUSAL_Y)
    start_x, count_x = queries_of(x, class_x, kernel_x, KEYS_X, STRIDE_X, CAUSAL_X)
    tiles_z, tiles_y, tiles_x = tl.cdiv(count_z, QUERIES_Z), tl.cdiv(count_y, QUERIES_Y), tl.cdiv(count_x, QUERIES_X)

    k_grad = tl.zeros([KEYS_Z * KEYS_Y * KEYS_X, BLOCK_D], tl.float32)
    v_grad = tl.zeros([KEYS_Z * KEYS_Y * KEYS_X, BLOCK_D], tl.float32)
    for tile in range(0, tiles_z * tiles_y * tiles_x):
        tile_z, tile_y, tile_x = unflatten(tile, tiles_y, tiles_x)
        query_z, query_y, query_x = places(
            start_z + tile_z * QUERIES_Z, start_y + tile_y * QUERIES_Y, start_x + tile_x * QUERIES_X,
            QUERIES_Z, QUERIES_Y, QUERIES_X,
        )  # fmt: skip
        is_query = are_inside(query_z, query_y, query_x, class_z, class_y, class_x)
        on_z, on_y, on_x = on_map(
            query_z, query_y, query_x, residue_z, residue_y, residue_x, dilation_z, dilation_y, dilation_x
        )
        row = (((batch * length_z + on_z) * length_y + on_y) * length_x + on_x) * heads + head
        q_rows = load_rows(q, on_z * q_z + on_y * q_y + on_x * q_x, is_query, q_d, HEAD_DIM, BLOCK_D)
        g_rows = load_rows(grad_out, row * HEAD_DIM, is_query, 1, HEAD_DIM, BLOCK_D)
        q_lse = tl.load(lse + row, mask=is_query, other=0.0) * LOG2_E
        q_delta = tl.load(delta + row, mask=is_query, other=0.0)
        q_entry = table_index(query_z, query_y, query_x, kernel_y, kernel_x)

        first_z, last_z = window(query_z, class_z, kernel_z, STRIDE_Z, CAUSAL_Z)
        first_y, last_y = window(query_y, class_y, kernel_y, STRIDE_Y, CAUSAL_Y)
        first_x, last_x = window(query_x, class_x, kernel_x, STRIDE_X, CAUSAL_X)
        is_seen = sees(first_z, last_z, first_y, last_y, first_x, last_x, key_z, key_y, key_x, AXES, True)
        is_seen &= is_key[:, None] & is_query[None, :]
        entry = k_entry[:, None] - q_entry[None, :]  # (keys, queries)
        logits = base_2_logits(k_rows, q_rows, scale, bias, entry, is_seen, HAS_BIAS)
        weights = tl.where(is_seen, tl.exp2(logits - q_lse[None, :]), 0.0)
        v_grad = multiply(weights.to(g_rows.dtype), g_rows, v_grad)
        grad_logits = weights * (multiply(v_rows, tl.trans(g_rows)) - q_delta[None, :])
        k_grad = multiply(grad_logits.to(q_rows.dtype), q_rows, k_grad)

    store_rows(grad_k, k_row * HEAD_DIM, is_key, k_grad * scale, HEAD_DIM, BLOCK_D)
    store_rows(grad_v, k_row * HEAD_DIM, is_key, v_grad, HEAD_DIM, BLOCK_D)


@triton.jit(do_not_specialize=[*UNSPECIALIZED, "tiles", "split_tiles", "span_z", "span_y", "span_x"])
def grad_bias_kernel(
    q, k, v, bias, lse, delta, grad_out, workspace,
    q_b, q_z, q_y, q_x, q_h, q_d, k_b, k_z, k_y, k_x, k_h, k_d, v_b, v_z, v_y, v_x, v_h, v_d,
    heads, scale, length_z, length_y, length_x, kernel_z, kernel_y, kernel_x, dilation_z, dilation_y, dilation_x,
    tiles, split_tiles, span_z, span_y, span_x,
    STRIDE_Z: tl.constexpr, STRIDE_Y: tl.constexpr, STRIDE_X: tl.constexpr,
    CAUSAL_Z: tl.constexpr, CAUSAL_Y: tl.constexpr, CAUSAL_X: tl.constexpr,
    QUERIES_Z: tl.constexpr, QUERIES_Y: tl.constexpr, QUERIES_X: tl.constexpr,
    KEYS_Z: tl.constexpr, KEYS_Y: tl.constexpr, KEYS_X: tl.constexpr,
    AXES: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """workspace (splits, heads, queries of a tile, span_z, span_y, span_x), float32: its element [.., i, u] is the sum
    of dS, over the tiles of the split, for query i of the tile and the key at start of the tile + u - (kernel - 1).

    A span holds all keys that any tile may see: 2 * kernel - 1 + queries of a tile - 1, in whole tiles of keys.
    """
    program = tl.program_id(0)
    head = (program % heads).to(tl.int64)
    shifts_y, shifts_x = span_y // KEYS_Y, span_x // KEYS_X
    shifts = span_z // KEYS_Z * shifts_y * shifts_x
    split = program // heads // shifts
    shift_z, shift_y, shift_x = unflatten(program // heads % shifts, shifts_y, shifts_x)
    bias += head * ((2 * kernel_z - 1) * (2 * kernel_y - 1) * (2 * kernel_x - 1))
    center = table_index(kernel_z - 1, kernel_y - 1, kernel_x - 1, kernel_y, kernel_x)

    summed = tl.zeros([QUERIES_Z * QUERIES_Y * QUERIES_X, KEYS_Z * KEYS_Y * KEYS_X], tl.float32)
    for tile in range(split * split_tiles, tl.minimum((split + 1) * split_tiles, tiles)):
        batch, residue_z, residue_y, residue_x, class_z, class_y, class_x, z, y, x = locate(
            tile, length_z, length_y, length_x, dilation_z, dilation_y, dilation_x, QUERIES_Z, QUERIES_Y, QUERIES_X
        )
        from_z = z + shift_z * KEYS_Z - kernel_z + 1
        from_y = y + shift_y * KEYS_Y - kernel_y + 1
        from_x = x + shift_x * KEYS_X - kernel_x + 1
        start_z, count_z = keys_of(z, class_z, kernel_z, QUERIES_Z, STRIDE_Z, CAUSAL_Z)
        start_y, count_y = keys_of(y, class_y, kernel_y, QUERIES_Y, STRIDE_Y, CAUSAL_Y)
        start_x, count_x = keys_of(x, class_x, kernel_x, QUERIES_X, STRIDE_X, CAUSAL_X)
        meet = (from_z < start_z + count_z) & (from_z + KEYS_Z > start_z)
        meet &= (from_y < start_y + count_y) & (from_y + KEYS_Y > start_y)
        meet &= (from_x < start_x + count_x) & (from_x + KEYS_X > start_x)
        if meet:
            query_z, query_y, query_x = places(z, y, x, QUERIES_Z, QUERIES_Y, QUERIES_X)
            is_query = are_inside(query_z, query_y, query_x, class_z, class_y, class_x)
            map_z, map_y, map_x = on_map(
                query_z, query_y, query_x, residue_z, residue_y, residue_x, dilation_z, dilation_y, dilation_x
            )
            row = (((batch * length_z + map_z) * length_y + map_y) * length_x + map_x) * heads + head
            q_offset = batch * q_b + head * q_h + map_z * q_z + map_y * q_y + map_x * q_x
            q_rows = load_rows(q, q_offset, is_query, q_d, HEAD_DIM, BLOCK_D)
            g_rows = load_rows(grad_out, row * HEAD_DIM, is_query, 1, HEAD_DIM, BLOCK_D)
            q_lse = tl.load(lse + row, mask=is_query, other=0.0) * LOG2_E
            q_delta = tl.load(delta + row, mask=is_query, other=0.0)

            key_z, key_y, key_x = places(from_z, from_y, from_x, KEYS_Z, KEYS_Y, KEYS_X)
            is_key = are_inside(key_z, key_y, key_x, class_z, class_y, class_x)
            is_key &= (key_z >= 0) & (key_y >= 0) & (key_x >= 0)
            on_z, on_y, on_x = on_map(
                key_z, key_y, key_x, residue_z, residue_y, residue_x, dilation_z, dilation_y, dilation_x
            )
            k_offset = batch * k_b + head * k_h + on_z * k_z + on_y * k_y + on_x * k_x
            v_offset = batch * v_b + head * v_h + on_z * v_z + on_y * v_y + on_x * v_x
            k_rows = load_rows(k, k_offset, is_key, k_d, HEAD_DIM, BLOCK_D)
            v_rows = load_rows(v, v_offset, is_key, v_d, HEAD_DIM, BLOCK_D)

            first_z, last_z = window(query_z, class_z, kernel_z, STRIDE_Z, CAUSAL_Z)
            first_y, last_y = window(query_y, class_y, kernel_y, STRIDE_Y, CAUSAL_Y)
            first_x, last_x = window(query_x, class_x, kernel_x, STRIDE_X, CAUSAL_X)
            is_seen = sees(first_z, last_z, first_y, last_y, first_x, last_x, key_z, key_y, key_x, AXES, False)
            is_seen &= is_query[:, None] & is_key[None, :]
            q_entry = table_index(query_z, query_y, query_x, kernel_y, kernel_x) - center
            k_entry = table_index(key_z, key_y, key_x, kernel_y, kernel_x)
            entry = k_entry[None, :] - q_entry[:, None]  # (queries, keys)
            logits = base_2_logits(q_rows, k_rows, scale, bias, entry, is_seen, True)
            weights = tl.where(is_seen, tl.exp2(logits - q_lse[:, None]), 0.0)
            summed += weights * (multiply(g_rows, tl.trans(v_rows)) - q_delta[:, None])

    query = tl.arange(0, QUERIES_Z * QUERIES_Y * QUERIES_X).to(tl.int64)
    u_z, u_y, u_x = places(shift_z * KEYS_Z, shift_y * KEYS_Y, shift_x * KEYS_X, KEYS_Z, KEYS_Y, KEYS_X)
    box = (u_z * span_y + u_y) * span_x + u_x
    tile_row = (split * heads + head) * (QUERIES_Z * QUERIES_Y * QUERIES_X) + query
    tl.store(workspace + (tile_row * span_z * span_y * span_x)[:, None] + box[None, :], summed)
