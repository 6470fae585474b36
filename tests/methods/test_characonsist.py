"""CharaConsist against a slow float64 implementation that makes the identity picture first and caches all of it.

Tolerance 1e-3 of the latents, relative in the 2-norm: what is claimed for denoising in lock-step against the cached
form; what is measured is float32's rounding. Choices between points and the sides of masks are compared exactly; the
reference says how far they are from turning over.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kaleido_jax.bundle import abstract, merge, parameters
from kaleido_jax.diffusion import samplers
from kaleido_jax.layout import patchify
from kaleido_jax.methods import characonsist, text_to_image
from kaleido_jax.methods.characonsist import CharaConsist, Texts
from kaleido_jax.models.flux import FluxConfig, FluxTransformer
from kaleido_jax.testing import relative_error
from kaleido_jax.testing.tiny import randomised
from tests.methods.characonsist_reference import Group, Network

FLUX = FluxConfig(
    dim=32, ffn_dim=64, heads=2, double_layers=1, single_layers=3, guidance=True, channels=3, text_dim=12, pooled_dim=8,
    axes=(4, 6, 6), freq_dim=16,
)  # fmt: skip
GRID, TEXT, STEPS, FRAMES = (1, 5, 6), 9, 5, 2
FEW = {"of_steps": STEPS, "share_from": 1, "share_until": 4, "merge_hold": 2, "merge_until": 4}
CASES = {
    "released, background kept": CharaConsist.released(
        **FEW, match_at=2, keep_background=True, threshold=0.2, dilate=3
    ),
    "paper, two characters": CharaConsist.paper(of_steps=STEPS, share_until=STEPS, merge_until=STEPS),
}
LATENTS = 1e-3


@functools.cache
def network():
    return randomised(lambda: FluxTransformer(FLUX, nnx.Rngs(0)), np.random.default_rng(0))


def inputs(characters, seed=1):
    random = np.random.default_rng(seed)
    normal = lambda *shape: random.standard_normal(shape).astype(np.float32)
    said = [0, 0, 0, 1, 1, 2, 3, -1, -1] if characters == 2 else [0, 0, 0, 0, 1, 1, 1, -1, -1]
    texts = Texts(
        text=normal(1 + FRAMES, TEXT, FLUX.text_dim),
        pooled=normal(1 + FRAMES, FLUX.pooled_dim),
        words=np.array([said] * (1 + FRAMES), np.int32),
    )
    return texts, normal(1, 1, 2 * GRID[1], 2 * GRID[2], FLUX.channels)


@functools.partial(jax.jit, static_argnames=("method", "layout", "characters"))
def step(weights, x, row, texts, tracking, at, *, method, layout, characters):
    model = merge(abstract(lambda: FluxTransformer(FLUX, nnx.Rngs(0)))[0], weights)
    guidance = jnp.float32(0.0035)
    return characonsist.denoise(
        method, model, x, row, texts, guidance, tracking, at, layout=layout, characters=characters
    )


@pytest.fixture(scope="module", params=CASES, ids=lambda name: name.split(",")[0])
def case(request):
    method = CASES[request.param]
    characters = 2 if "two" in request.param else 1
    texts, noise = inputs(characters)
    table = samplers.euler(STEPS, 1.5)
    layout = text_to_image.layout(GRID, text_tokens=TEXT)
    weights = parameters(network())

    def program(x, row, tracking, at):
        own = jax.tree.map(lambda leaf: leaf[: x.shape[0]], texts)
        return step(weights, x, row, own, tracking, at, method=method, layout=layout, characters=characters)

    before = step._cache_size()
    latents, tracking = characonsist.draw(method, program, jnp.asarray(noise), table, FLUX, frames=FRAMES)
    programs = step._cache_size() - before
    sigmas = [*table.sigma, 0.0]
    group = Group(
        Network(weights, FLUX), method, GRID[1:], list(np.float64(texts.text)), list(np.float64(texts.pooled)),
        list(texts.words), sigmas, np.float64(np.float32(0.0035)), characters,
    )  # fmt: skip
    return (
        dataclasses.replace(method),
        latents,
        tracking,
        group,
        group.run(np.float64(patchify(jnp.asarray(noise), FLUX.patch)[0])),
        programs,
    )


def test_lock_step_equals_the_cached_form(case, record_property):
    method, latents, tracking, group, expected, programs = case
    print({k: min(v) for k, v in group.margins.items()}, np.asarray(tracking.tracked), np.asarray(tracking.shown))
    ours = patchify(latents, FLUX.patch)
    for index, picture in enumerate(expected):
        error = relative_error(ours[index], picture)
        record_property(f"picture {index}", error)
        print(index, error)
        assert error <= LATENTS
    assert programs == (2 if method.keep_background else 1)  # whatever the step
