"""What the kernels for Hopper GPUs are made of: products by wgmma, fetching by TMA, the walk along a list of blocks.

A thread block has three warpgroups. Two hold 64 rows each and multiply; the third one walks the list of visited blocks
and fetches what it names, a few blocks ahead. Everything here also runs in the interpreter of Mosaic GPU, which knows
neither the layouts of registers nor accumulators that outlive a step of a loop.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as gpu

from kaleido_jax.attention.blocks import VISITED, WHOLE
from kaleido_jax.attention.reference import NOTHING
from kaleido_jax.typing import Array

WARPGROUPS = 2  # that compute
ROWS = 64  # of one warpgroup: those of one wgmma
LOG2E = math.log2(math.e)
MATRIX, BY_ROW, BY_COLUMN = gpu.Layout.WGMMA, gpu.Layout.WGMMA.reduce(1), gpu.Layout.WGMMA.reduce(0)


class Call(NamedTuple):
    """What is static about a call of a kernel."""

    fetched: int
    stages: int
    shared: int  # query heads that read one key head
    rows: int  # of the mask: the batch or 1
    vectors: int  # of the mask: bits, and samples where there are any
    scale: float
    interpret: bool

    @property
    def scale2(self) -> float:
        """Scales scores for powers of two, which the hardware computes."""
        return self.scale * LOG2E


def cast(x: Array, layout: Any, call: Call) -> Array:
    """Says how an array lies over the threads of a warpgroup; the interpreter knows no layouts."""
    return x if call.interpret else gpu.layout_cast(x, layout)


def full(shape: tuple[int, ...], value: float, layout: Any, call: Call) -> Array:
    return cast(jnp.full(shape, value, jnp.float32), layout, call)


def across(x: Array, like: Array, axis: int) -> Array:
    """The vector along an axis of the matrix, repeated along the other."""
    return jax.lax.broadcast_in_dim(x, like.shape, (axis,))


def product(x: Any, y: Any, call: Call, meanwhile: Callable[[], None] = lambda: None) -> Array:
    """x y^T of two blocks in shared memory, in float32; `meanwhile` runs before it is waited for."""
    if call.interpret:
        meanwhile()
        return jax.lax.dot_general(x[...], y[...], (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)

    def compute(sums):
        gpu.wgmma(sums, x, gpu.transpose_ref(y, (1, 0)))
        meanwhile()
        return sums[...]

    return pl.run_scoped(compute, gpu.ACC((x.shape[0], y.shape[0]), jnp.float32))


def add_product(sums: Array, x: Array, y: Any, call: Call, meanwhile: Callable[[], None] = lambda: None) -> Array:
    """sums + x y with x in registers and y in shared memory, in place."""
    if call.interpret:  # which has no accumulator that outlives a loop's step
        meanwhile()
        return sums + jax.lax.dot(x, y[...], preferred_element_type=jnp.float32)

    def compute(sums):
        gpu.wgmma(sums, x, y)
        meanwhile()

    return pl.run_state(compute)(gpu.ACC.init(sums))


def hide(scores: Array, by_row: Sequence[Array], by_column: Sequence[Array]) -> Array:
    """NOTHING where the token of a row and that of a column do not see each other."""
    visible = (across(by_row[0], scores, 0) & across(by_column[0], scores, 1)) != 0
    if len(by_row) > 1:
        visible = visible & (across(by_row[1], scores, 0) == across(by_column[1], scores, 1))
    return jnp.where(visible, scores, NOTHING)


def finite(x: Array) -> Array:
    """Zero where a row has read nothing, so that exp2(NOTHING - x) is 0 there and not 1."""
    return jnp.where(x <= NOTHING / 2, 0.0, x)


class VisitList(NamedTuple):
    """The list of blocks that this thread block visits, in global memory."""

    words: Any
    row: Any
    block: Any

    def __getitem__(self, place: Any) -> Any:
        return self.words[self.row, self.block, place]

    def walk(self, visit: Callable, carry: Any) -> Any:
        """visit(i, carry, partial) for all visits: of the full blocks, then of the partial ones."""
        visits = lambda partial: lambda i, carry: visit(i, carry, partial)
        carry = jax.lax.fori_loop(0, self[WHOLE], visits(False), carry)
        return jax.lax.fori_loop(self[WHOLE], self[VISITED], visits(True), carry)


class Stream(NamedTuple):
    """A ring of buffers for what is fetched and released together.

    copies: pairs of what to fetch, source(*place), and where to, buffer(slot). ready: a barrier for each slot, once all
    is there. free: once both computing warpgroups have read it.
    """

    copies: Sequence[tuple[Callable, Callable]]
    ready: Any
    free: Any


def fetch(steps: Any, locate: Callable, streams: Sequence[Stream], stages: int) -> None:
    """Fetches what every step needs, at the place locate(step). Ends when all of it has been read."""

    def step(i, _):
        slot = jax.lax.rem(i, stages)
        place = locate(i)
        for copies, ready, free in streams:

            @pl.when(i >= stages)
            def _(free=free):
                gpu.barrier_wait(free.at[slot])

            for source, buffer in copies:
                gpu.copy_gmem_to_smem(source(*place), buffer(slot), ready.at[slot])

    def drain(i, _):
        for stream in streams:
            gpu.barrier_wait(stream.free.at[jax.lax.rem(i, stages)])

    jax.lax.fori_loop(0, steps, step, None)
    jax.lax.fori_loop(jnp.maximum(steps - stages, 0), steps, drain, None)


def place_of(words: Any, call: Call) -> tuple[Any, Any, Any, Any, VisitList]:
    """batch, head, first held token of this warpgroup, warpgroup, list of this thread block."""
    batch, head, block, warpgroup = (jax.lax.axis_index(name) for name in ("batch", "heads", "block", "warpgroup"))
    first = block * (WARPGROUPS * ROWS) + warpgroup * ROWS
    return batch, head, first, warpgroup, VisitList(words, batch if call.rows > 1 else 0, block)


def load_held(pairs: Sequence[tuple[Any, Any]], ready: Any) -> None:
    """Fetches what a warpgroup holds during the whole walk."""
    for source, buffer in pairs:
        gpu.copy_gmem_to_smem(source, buffer, ready)
    gpu.barrier_wait(ready)


def read_vectors(buffer: Any, layout: Any, call: Call) -> list[Array]:
    """Bits, and samples, of the rows or columns of a block: [vectors, tokens] in shared memory."""
    return [cast(buffer.at[i][...], layout, call) for i in range(call.vectors)]


def matrices(*shape: int, dtype: Any) -> Any:
    """Shared memory for blocks of rows, in the arrangement that wgmma and TMA share."""
    return gpu.SMEM(shape, dtype, transforms=(gpu.TilingTransform((8, 64)), gpu.SwizzleTransform(128)))


def launch(kernel: Callable, call: Call, grid: tuple[int, ...], out_type: Any, scratch: Sequence[Any]) -> Callable:
    interpret = None
    if call.interpret:
        from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams  # not public yet

        interpret = InterpretGPUParams()
    return gpu.kernel(
        functools.partial(kernel, call=call),
        out_type=out_type,
        scratch_types=scratch,
        grid=grid,
        grid_names=("batch", "heads", "block"),  # the last one is the fastest: neighbours share keys in the L2 cache
        num_threads=WARPGROUPS + 1,
        thread_name="warpgroup",
        compiler_params=gpu.CompilerParams(approx_math=True),
        kernel_name=kernel.__name__.strip("_"),
        interpret=interpret,
    )
