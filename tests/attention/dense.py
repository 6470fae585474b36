"""Dense attention in float64 by torch, with its gradients: what every backend is compared with."""

import jax.numpy as jnp
import numpy as np
import torch

from kaleido_jax.attention.reference import Visibility
from kaleido_jax.masks import TokenMask


def problem(seed, *, batch=2, queries, keys, heads=4, key_heads=2, head_dim=64, dtype="float32"):
    """q, k, v and the cotangents of the output and of its log-sum-exp, in the layout of `attention`."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape).astype(np.float32)).astype(dtype)
    q = draw(batch, queries, heads, head_dim)
    k, v = draw(batch, keys, key_heads, head_dim), draw(batch, keys, key_heads, head_dim)
    return (q, k, v), (draw(batch, queries, heads, head_dim), draw(batch, heads, queries).astype("float32"))


def random_mask(seed, queries, keys, *, batch=2):
    """Runs of tokens of one group; some queries read nothing, some everything, some keys are read by nobody."""
    rng = np.random.default_rng(seed)
    groups = np.uint32(1) << np.sort(rng.integers(0, 6, size=(batch, keys))).astype(np.uint32)
    reads = np.sort(rng.integers(0, 64, size=(batch, queries)), axis=1).astype(np.uint32)
    reads[:, queries // 3 : queries // 2] = 63
    reads[:, 3:6], groups[:, 5:9] = 0, 0
    sample = lambda tokens: np.sort(rng.integers(-1, 2, size=tokens)).astype(np.int32)
    return TokenMask(reads, groups, q_sample=sample(queries), k_sample=sample(keys), width=6)


def visibility_of(mask):
    """A mask in the form that backends take: rows of vectors, padding queries without a bit."""
    if mask is None:
        return None
    rows = lambda x: None if x is None else jnp.atleast_2d(jnp.asarray(x))
    vectors = Visibility(rows(mask.reads), rows(mask.groups), rows(mask.q_sample), rows(mask.k_sample))
    if vectors.q_sample is None:
        return vectors
    return vectors._replace(reads=jnp.where(vectors.q_sample < 0, jnp.uint32(0), vectors.reads))


def dense_attention(inputs, cotangents, mask, scale):
    """out, lse (0 where a query reads nothing) and the gradients of q, k and v, as float64 arrays."""
    to_torch = lambda x: torch.from_numpy(np.array(x, np.float64))
    q, k, v = (to_torch(x).transpose(1, 2).requires_grad_() for x in inputs)
    d_out, d_lse = to_torch(cotangents[0]).transpose(1, 2), to_torch(cotangents[1])
    shape = (q.shape[0], 1, q.shape[2], k.shape[2])
    visible = np.ones(shape, bool) if mask is None else np.broadcast_to(np.asarray(mask.dense())[:, None], shape)
    visible = torch.from_numpy(visible.copy())
    shared = q.shape[1] // k.shape[1]
    attend = torch.nn.functional.scaled_dot_product_attention
    out = attend(q, k, v, attn_mask=visible, scale=scale, enable_gqa=True)
    scores = q @ k.repeat_interleave(shared, 1).transpose(2, 3) * scale
    something = visible.any(3, keepdim=True)
    lse = torch.logsumexp(scores.masked_fill(~visible & something, -torch.inf), 3)
    lse = torch.where(something[..., 0], lse, 0.0)
    ((out * d_out).sum() + (lse * d_lse).sum()).backward()
    back = lambda x: x.detach().transpose(1, 2).numpy()
    return back(out), lse.detach().numpy(), back(q.grad), back(k.grad), back(v.grad)


def relative_error(actual, expected):
    """Of the whole array, in the L2 norm."""
    actual = np.asarray(actual).astype(np.float64)
    return np.linalg.norm(actual - expected) / max(np.linalg.norm(expected), 1e-30)


def assert_close(results, expected, tolerance):
    """Output, log-sum-exp and gradients, each within `tolerance` in the relative L2 norm."""
    out, lse, *gradients = (np.asarray(x) for x in results)
    lse = np.where(lse < -1e29, 0.0, lse)  # a query that reads nothing
    names = ("out", "lse", "dq", "dk", "dv")
    errors = {name: relative_error(a, b) for name, a, b in zip(names, (out, lse, *gradients), expected)}
    assert all(error <= tolerance for error in errors.values()), errors
