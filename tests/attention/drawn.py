"""Masks that hypothesis draws: layouts of segments under the rules of the methods, with absent tokens and packing."""

import numpy as np
from hypothesis import strategies as st

from kaleido_jax.layout import Segment, TokenLayout
from kaleido_jax.masks import RULES, TokenMask, visibility
from tests.attention.dense import assert_close, dense_attention, problem

# Relative L2 errors: sums in another order; probabilities rounded to 8 bits for the second product.
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}

# What is drawn are plain values. The mask is made of them in the test, since checks of signatures use random numbers,
# which hypothesis wants to know of while it draws.
DRAWN = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "frames": st.lists(st.integers(1, 3), min_size=1, max_size=3),  # of each shot
        "references": st.integers(0, 4),
        "samples": st.integers(1, 3),
        "rule": st.sampled_from([*sorted(RULES), "any bits"]),
    }
)


def drawn_mask(drawn, *, batch, queries, keys):
    """A TokenMask between so many tokens, the same program for all draws: [batch, tokens] vectors, samples, 32 bits.

    The tokens of a layout are stretched to the lengths; or the bits are any, and those of some rows 0.
    """
    rng = np.random.default_rng(drawn["seed"])
    if drawn["rule"] == "any bits":
        reads, groups = (rng.integers(0, 16, (batch, tokens)).astype(np.uint32) for tokens in (queries, keys))
        samples = [np.sort(rng.integers(-1, 2, (batch, tokens))).astype(np.int32) for tokens in (queries, keys)]
        return TokenMask(reads, groups, q_sample=samples[0], k_sample=samples[1])
    segments = [Segment(kind="video", grid=(frames, 3, 4), shot=i) for i, frames in enumerate(drawn["frames"])]
    count = drawn["references"]
    segments += [Segment(kind="reference", grid=(1, 3, 4), subject=i // 2, picture=i % 2) for i in range(count)]
    layout = TokenLayout(tuple(segments))
    whole = np.array([[segment.tokens for segment in segments]] * batch)
    lengths = np.where(rng.random(whole.shape) < 0.3, rng.integers(0, whole + 1), whole)
    contents = layout.contents(lengths=lengths, samples=rng.integers(0, drawn["samples"], whole.shape))
    mask = visibility(layout, RULES[drawn["rule"]], contents=contents)
    tokens = layout.tokens()
    mask = mask.take(queries=np.arange(queries) * tokens // queries, keys=np.arange(keys) * tokens // keys)
    rows = lambda x, dtype: np.broadcast_to(np.asarray(x), (batch, x.shape[-1])).astype(dtype)
    return TokenMask(
        rows(mask.reads, np.uint32),
        rows(mask.groups, np.uint32),
        q_sample=rows(mask.q_sample, np.int32),
        k_sample=rows(mask.k_sample, np.int32),
    )


def assert_exact(run, drawn, dtype, sizes):
    """That `run` of q, k, v, the cotangents and the mask drawn is dense attention in float64, with its gradients."""
    mask = drawn_mask(drawn, batch=2, queries=sizes["queries"], keys=sizes["keys"])
    inputs, cotangents = problem(0, dtype=dtype, **sizes)
    results = run(inputs, cotangents, mask, scale=0.1)
    assert_close(results, dense_attention(inputs, cotangents, mask, 0.1), TOLERANCE[dtype])
