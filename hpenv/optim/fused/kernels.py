"""Triton kernels of the updates of an arena. `hpenv.optim.fused.launches` launches them.

A block of the update works on one block of a segment and writes the sums of its entries to its own
place. A second kernel adds them up in a fixed order. There are no atomics, so that the same inputs
give the same bits. The launches read every rate from the arena: other values need no compilation,
and a CUDA graph that has recorded a step reads those of the moment. The size of a block is fixed.
Multiplications and additions are not fused, and roots and quotients are rounded to nearest.

With TRITON_INTERPRET=1 in the environment before this module is imported, the kernels run on a CPU.
"""

from __future__ import annotations

from hpenv.optim.fused.layout import ALIGNMENT

try:
    import triton
    import triton.language as tl
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "hpenv.optim.fused.kernels needs triton; install it with: pip install 'hpenv[kernels]'",
        name=error.name,
    ) from error

#: Options of every launch. Fused multiplications would round otherwise than the twin.
OPTIONS = {"num_warps": 4, "num_stages": 2, "enable_fp_fusion": False}
#: Partial sums that the second kernel adds at a time.
CHUNK = 256
#: Sums of a block, before its maximum.
NUM_SUMS = 5
#: Alignment of a segment, as the kernels see it.
_ALIGNMENT = tl.constexpr(ALIGNMENT)


@triton.jit
def _block_of(blocks, starts, sizes, BLOCK: tl.constexpr):
    """Returns segment and offsets of a block, and masks of its own and of its readable entries.

    The readable entries end at a multiple of the alignment, so that whole 16 bytes are read.
    """
    block = tl.program_id(0)
    size = tl.load(sizes + block)
    entries = tl.arange(0, BLOCK)
    offsets = tl.multiple_of(tl.load(starts + block), _ALIGNMENT) + entries
    readable = entries < (size + _ALIGNMENT - 1) // _ALIGNMENT * _ALIGNMENT
    return tl.load(blocks + block), offsets, entries < size, readable


@triton.jit
def _is_open(gate, segment, BLOCK: tl.constexpr):
    """Returns True at every entry of a block if the gate of its segment is not 0.

    The number is spread before it is compared: the interpreter cannot spread a comparison.
    """
    return tl.broadcast_to(tl.load(gate + segment), [BLOCK]) != 0.0


@triton.jit
def _lerp(start, end, fraction):
    """Returns torch.lerp, in the order of its operations."""
    change = end - start
    near_end = end - change * (1.0 - fraction)
    return tl.where(fraction < 0.5, start + fraction * change, near_end)


@triton.jit
def _write_partials(partials, num_blocks, g, before, after, own, moves):
    """Writes the statistics of a block: five sums and the maximum."""
    update = tl.where(own & moves, after - before, 0.0)
    weights = tl.where(own, tl.where(moves, after, before), 0.0)
    g = tl.where(own, g, 0.0)
    place = partials + tl.program_id(0)
    tl.store(place, tl.sum(g * g))
    tl.store(place + num_blocks, tl.sum(weights * weights))
    tl.store(place + 2 * num_blocks, tl.sum(update * update))
    tl.store(place + 3 * num_blocks, tl.sum(weights * update))
    tl.store(place + 4 * num_blocks, tl.sum(g * update))
    tl.store(place + 5 * num_blocks, tl.max(tl.abs(g)))


@triton.jit
def square_kernel(gradients, blocks, starts, sizes, partials, BLOCK: tl.constexpr):
    """Writes the sum of the squared gradients of each block."""
    _, offsets, own, readable = _block_of(blocks, starts, sizes, BLOCK)
    g = tl.load(gradients + offsets, mask=readable, other=0.0)
    g = tl.where(own, g, 0.0)
    tl.store(partials + tl.program_id(0), tl.sum(g * g))


@triton.jit
def reduce_kernel(
    partials, first_blocks, counts, results, num_blocks,
    SUMS: tl.constexpr, MAXIMUM: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Adds up the partial sums of each segment in a fixed order, in float64."""
    segment, num_segments = tl.program_id(0), tl.num_programs(0)
    first, count = tl.load(first_blocks + segment), tl.load(counts + segment)
    chunk = tl.arange(0, CHUNK)
    for row in tl.static_range(SUMS):
        total = tl.zeros([CHUNK], tl.float64)
        for start in range(0, count, CHUNK):
            place = partials + row * num_blocks + first + start + chunk
            total += tl.load(place, mask=start + chunk < count, other=0.0).to(tl.float64)
        tl.store(results + row * num_segments + segment, tl.sum(total))
    if MAXIMUM:
        largest = tl.zeros([CHUNK], tl.float32)
        for start in range(0, count, CHUNK):
            place = partials + SUMS * num_blocks + first + start + chunk
            found = tl.load(place, mask=start + chunk < count, other=0.0)
            largest = tl.maximum(largest, found)
        # A maximum of the hardware leaves NaN out. The first sum is NaN if a gradient is.
        squares = tl.load(results + segment)
        result = tl.where(squares == squares, tl.max(largest).to(tl.float64), squares)
        tl.store(results + SUMS * num_segments + segment, result)


@triton.jit
def _cap_factor(cap, squares, cells, num_tensors, HAS_CAPS: tl.constexpr, WIDTH: tl.constexpr):
    """Returns min(1, cap / norm) of this program's segment, the norm over all tensors of its cell.

    Exactly 1 for an infinite cap.
    """
    segment = tl.program_id(0)
    factor = tl.full((), 1.0, tl.float64)
    if HAS_CAPS:
        run, tensor = segment // num_tensors, segment % num_tensors
        tensors = tl.arange(0, WIDTH)
        exists = tensors < num_tensors
        same = tl.load(cells + tensors, mask=exists, other=-1) == tl.load(cells + tensor)
        found = tl.load(squares + run * num_tensors + tensors, mask=exists & same, other=0.0)
        norm = tl.sqrt(tl.sum(found))
        largest = tl.load(cap + segment)
        bounded = tl.minimum(largest / tl.maximum(norm, 1e-30), 1.0)
        factor = tl.where(largest < float("inf"), bounded, 1.0)
    return factor


@triton.jit
def adamw_scalars_kernel(
    lr, decay, new1, new2, eps, gate, cap, products, squares, cells, scalars, num_tensors,
    HAS_CAPS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Writes the six scalars of each segment, and multiplies the products of the betas."""
    segment, num_segments = tl.program_id(0), tl.num_programs(0)
    new1, new2 = tl.load(new1 + segment), tl.load(new2 + segment)
    product1 = tl.load(products + segment) * (1.0 - new1)
    product2 = tl.load(products + num_segments + segment) * (1.0 - new2)
    moves = tl.load(gate + segment) != 0.0
    tl.store(products + segment, product1, mask=moves)
    tl.store(products + num_segments + segment, product2, mask=moves)

    lr, root = tl.load(lr + segment), tl.sqrt(1.0 - product2)
    keep = 1.0 - lr * tl.load(decay + segment)
    keep = tl.minimum(tl.maximum(keep, 0.0), 1.0)
    factor = _cap_factor(cap, squares, cells, num_tensors, HAS_CAPS, WIDTH)
    place = scalars + segment
    tl.store(place, keep.to(tl.float32))
    tl.store(place + num_segments, new1.to(tl.float32))
    tl.store(place + 2 * num_segments, new2.to(tl.float32))
    tl.store(place + 3 * num_segments, (tl.load(eps + segment) * root).to(tl.float32))
    tl.store(place + 4 * num_segments, (lr * root / (1.0 - product1)).to(tl.float32))
    tl.store(place + 5 * num_segments, factor.to(tl.float32))


@triton.jit
def adamw_kernel(
    weights, gradients, momentum, second_moment, scalars, gate,
    blocks, starts, sizes, partials, num_segments, BLOCK: tl.constexpr,
):  # fmt: skip
    """Updates one block of one segment, and writes its partial statistics."""
    segment, offsets, own, readable = _block_of(blocks, starts, sizes, BLOCK)
    moves = _is_open(gate, segment, BLOCK)
    keep, new1 = tl.load(scalars + segment), tl.load(scalars + num_segments + segment)
    new2 = tl.load(scalars + 2 * num_segments + segment)
    eps = tl.load(scalars + 3 * num_segments + segment)
    size = tl.load(scalars + 4 * num_segments + segment)
    factor = tl.load(scalars + 5 * num_segments + segment)

    g = tl.load(gradients + offsets, mask=readable, other=0.0)
    w = tl.load(weights + offsets, mask=readable, other=0.0)
    m = tl.load(momentum + offsets, mask=readable, other=0.0)
    v = tl.load(second_moment + offsets, mask=readable, other=0.0)

    scaled = g * factor
    m = _lerp(m, scaled, new1)
    v = _lerp(v, scaled * scaled, new2)
    after = w * keep - tl.div_rn(m * size, tl.sqrt_rn(v) + eps)
    after = tl.where(own, after, 0.0)  # without eps, an unused entry would become 0 / 0

    tl.store(weights + offsets, after, mask=readable & moves)
    tl.store(momentum + offsets, m, mask=readable & moves)
    tl.store(second_moment + offsets, v, mask=readable & moves)
    _write_partials(partials, tl.num_programs(0), g, w, after, own, moves)


@triton.jit
def muon_scalars_kernel(
    lr, decay, momentum, new, cap, shape_factors, squares, cells, scalars, num_tensors,
    HAS_CAPS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Writes the five scalars of each segment."""
    segment, num_segments = tl.program_id(0), tl.num_programs(0)
    lr = tl.load(lr + segment).to(tl.float32)
    keep = 1.0 - lr * tl.load(decay + segment).to(tl.float32)
    keep = tl.minimum(tl.maximum(keep, 0.0), 1.0)
    factor = _cap_factor(cap, squares, cells, num_tensors, HAS_CAPS, WIDTH)
    place = scalars + segment
    tl.store(place, keep)
    tl.store(place + num_segments, lr * tl.load(shape_factors + segment % num_tensors))
    tl.store(place + 2 * num_segments, tl.load(momentum + segment).to(tl.float32))
    tl.store(place + 3 * num_segments, tl.load(new + segment).to(tl.float32))
    tl.store(place + 4 * num_segments, factor.to(tl.float32))


@triton.jit
def blend_kernel(
    gradients, momentum, direction, scalars, gate,
    blocks, starts, sizes, num_segments, BLOCK: tl.constexpr,
):  # fmt: skip
    """Moves the momentum of one block, and writes Nesterov's blend of it with the gradient."""
    segment, offsets, _, readable = _block_of(blocks, starts, sizes, BLOCK)
    moves = _is_open(gate, segment, BLOCK)
    mu = tl.load(scalars + 2 * num_segments + segment)
    new = tl.load(scalars + 3 * num_segments + segment)
    factor = tl.load(scalars + 4 * num_segments + segment)

    g = tl.load(gradients + offsets, mask=readable, other=0.0) * factor
    m = _lerp(tl.load(momentum + offsets, mask=readable, other=0.0), g, new)
    tl.store(momentum + offsets, m, mask=readable & moves)
    tl.store(direction + offsets, _lerp(g, m, mu), mask=readable)


@triton.jit
def apply_kernel(
    weights, gradients, direction, scalars, gate,
    blocks, starts, sizes, partials, num_segments, BLOCK: tl.constexpr,
):  # fmt: skip
    """Moves one block along its direction, with decay, and writes its partial statistics."""
    segment, offsets, own, readable = _block_of(blocks, starts, sizes, BLOCK)
    moves = _is_open(gate, segment, BLOCK)
    keep, size = tl.load(scalars + segment), tl.load(scalars + num_segments + segment)

    g = tl.load(gradients + offsets, mask=readable, other=0.0)
    w = tl.load(weights + offsets, mask=readable, other=0.0)
    after = w * keep - tl.load(direction + offsets, mask=readable, other=0.0) * size
    tl.store(weights + offsets, after, mask=readable & moves)
    _write_partials(partials, tl.num_programs(0), g, w, after, own, moves)
