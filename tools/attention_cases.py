"""The problems that attention is measured on: dense, and the mask of every method at the sizes of Wan's 480p videos.

    python tools/attention_cases.py

prints of each the fraction of pairs of tokens that is visible, and of pairs of blocks that is visited and partial, in
the blocks of each kernel.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kaleido_jax.attention.block_sizes import tuned
from kaleido_jax.layout import Segment, TokenLayout
from kaleido_jax.masks import (
    EMPTY,
    FULL,
    TokenMask,
    bidirectional,
    block_summary,
    foreground_background,
    separate_references,
    shot_causal,
    unidirectional,
    visibility,
)

HEAD_DIM = 128


@dataclasses.dataclass(frozen=True)
class Case:
    """Self-attention of one sample: `heads` of queries that read `key_heads` of keys, under a mask over all tokens."""

    name: str
    tokens: int
    heads: int
    key_heads: int
    mask: TokenMask | None

    def inputs(self, dtype: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        """q, k and v: [1, tokens, heads, head_dim], standard normal."""
        keys = jax.random.split(jax.random.key(0), 3)
        shapes = [(1, self.tokens, heads, HEAD_DIM) for heads in (self.heads, self.key_heads, self.key_heads)]
        return tuple(jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True))

    @property
    def visible(self) -> float:
        """f: the fraction of pairs of tokens that is visible."""
        if self.mask is None:
            return 1.0
        (q_kinds, q_counts), (k_kinds, k_counts) = (
            np.unique(np.stack([np.ravel(bits), sample]), axis=1, return_counts=True)
            for bits, sample in (
                (self.mask.reads, _sample(self.mask.q_sample, self.tokens)),
                (self.mask.groups, _sample(self.mask.k_sample, self.tokens)),
            )
        )
        seen = (q_kinds[0][:, None].astype(np.int64) & k_kinds[0][None].astype(np.int64)) != 0
        seen &= (q_kinds[1][:, None] == k_kinds[1][None]) & (q_kinds[1][:, None] >= 0)
        return float((seen * np.outer(q_counts, k_counts)).sum() / self.tokens**2)

    def visited(self, block_q: int, block_k: int) -> tuple[float, float]:
        """Which fraction of the pairs of blocks is visited, and which is partial."""
        if self.mask is None:
            return 1.0, 0.0
        summary = np.asarray(block_summary(self.mask, block_q, block_k))
        return float((summary != EMPTY).mean()), float(((summary != EMPTY) & (summary != FULL)).mean())

    def flops(self) -> float:
        """Of the visible pairs, forward: two products of head_dim."""
        return 4.0 * self.visible * self.tokens**2 * self.heads * HEAD_DIM


def _sample(sample: Any, tokens: int) -> np.ndarray:
    return np.zeros(tokens, np.int64) if sample is None else np.ravel(sample).astype(np.int64)


def _constant(mask: TokenMask) -> TokenMask:
    """With numpy vectors of one row."""
    vector = lambda x: None if x is None else np.asarray(x).reshape(-1)
    return TokenMask(
        vector(mask.reads),
        vector(mask.groups),
        q_sample=vector(mask.q_sample),
        k_sample=vector(mask.k_sample),
        width=mask.width,
    )


def cases(shrink: int = 1) -> list[Case]:
    """What tells most comes first. `shrink` divides the sides of pictures, for a run that takes seconds."""
    height, width = max(30 // shrink, 1), max(52 // shrink, 1)
    video = Segment(kind="video", grid=(21, height, width))  # 81 frames
    pictures = tuple(Segment(kind="reference", grid=(1, height, width), subject=i) for i in range(5))
    references = TokenLayout((*pictures, video))
    shots = TokenLayout(tuple(Segment(kind="video", grid=(5, height, width), shot=i) for i in range(8)))
    packed = TokenLayout(tuple(Segment(kind="video", grid=(5 + i, height, width)) for i in range(4)))
    side = height * width
    absent = [side] * 3 + [0] * 2 + [21 * side]
    front = np.arange(references.tokens()) % side < side // 3
    masks: dict[str, TokenMask | None] = {
        "kaleido, 3 of 5 references": visibility(
            references, bidirectional, contents=references.contents(lengths=np.array([absent]))
        ),
        "unidirectional, 5 references": visibility(references, unidirectional),
        "separate references, 5": visibility(references, separate_references),
        "shot-causal, 8 shots": visibility(shots, shot_causal),
        "packing of 4 videos": visibility(packed, contents=packed.contents(samples=np.array([[0, 1, 2, 3]]))),
        "foreground and background": foreground_background(references, jnp.asarray(front)),
    }
    dense = [Case(f"dense, {n} tokens", n, 16, 16, None) for n in (16384 // shrink**2, 4096 // shrink**2)]
    methods = [Case(name, mask.shape[1], 12, 12, _constant(mask)) for name, mask in masks.items() if mask is not None]
    return [dense[0], documents(16384 // shrink**2), *methods, dense[1]]


def documents(tokens: int) -> Case:
    """Documents of block-causal video, 64 heads on 8: the setting in which MagiAttention publishes its numbers."""
    document = np.repeat(np.arange(4, dtype=np.int32), [tokens // 8, tokens // 4, tokens // 2, tokens // 8])
    starts = np.concatenate([[0], np.flatnonzero(np.diff(document)) + 1])
    frame = (np.arange(tokens) - starts[document]) * 16 // (tokens // 2)  # at most 16 frames in a document
    bits = np.uint32(1) << frame.astype(np.uint32)
    mask = TokenMask((bits << np.uint32(1)) - np.uint32(1), bits, q_sample=document, k_sample=document, width=16)
    return Case("documents of block-causal video", tokens, 64, 8, mask)


def backend_blocks(platform: str) -> dict[str, tuple[int, int]]:
    """The kernels of a platform, with the queries and keys of a block of their forward pass."""
    forward = functools.partial(tuned, kernel="forward", dtype=jnp.bfloat16)
    if platform == "tpu":
        from kaleido_jax.attention import pallas_tpu

        return {"pallas_tpu": tuple(forward("pallas_tpu", default=pallas_tpu.FORWARD))}
    if platform == "gpu":
        from kaleido_jax.attention import hopper, pallas_gpu, pallas_triton

        made = {"pallas_triton": tuple(forward("pallas_triton", default=pallas_triton.FORWARD)[:2])}
        if getattr(jax.devices()[0], "compute_capability", "").startswith("9"):
            fetched = forward("pallas_gpu", default=pallas_gpu.FORWARD).fetched
            made = {"pallas_gpu": (hopper.WARPGROUPS * hopper.ROWS, fetched)} | made
        return made
    return {"reference": (512, 512)}


def gradient(attend: Callable) -> Callable:
    """The gradients of q, k and v of the sum of what attend(q, k, v, mask) gives."""

    def total(q, k, v, mask):
        return attend(q, k, v, mask).astype(jnp.float32).sum()

    return jax.grad(total, argnums=(0, 1, 2))


def main() -> int:
    from kaleido_jax.attention import hopper, pallas_gpu, pallas_tpu, pallas_triton

    blocks = {
        "pallas_tpu": tuple(pallas_tpu.FORWARD),
        "pallas_triton": tuple(pallas_triton.FORWARD[:2]),
        "pallas_gpu": (hopper.WARPGROUPS * hopper.ROWS, pallas_gpu.FORWARD.fetched),
    }
    print(f"{'':34}{'tokens':>7} {'f':>6}", *(f"{f'{name} {q} x {k}':>26}" for name, (q, k) in blocks.items()))
    for case in cases():
        fractions = [case.visited(*sizes) for sizes in blocks.values()]
        columns = (f"{f'{visited:.3f} ({partial:.3f} partial)':>26}" for visited, partial in fractions)
        print(f"{case.name:34}{case.tokens:7} {case.visible:6.3f}", *columns)
    return 0


if __name__ == "__main__":
    sys.exit(main())
