"""CharaConsist against a slow float64 implementation that makes the identity picture first and caches all of it.

Tolerance 1e-4 of the latents, relative in the 2-norm, for denoising in lock-step against the cached form; float32's
rounding is 1e-6. The reference says how far choices between points, and between sides of masks, are from turning over.
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
LAYOUT, GUIDANCE = text_to_image.layout(GRID, text_tokens=TEXT), np.float32(0.0035)
FEW = {"of_steps": STEPS, "share_from": 1, "share_until": 4, "merge_hold": 2, "merge_until": 4}
CASES = {
    "released, background kept": CharaConsist.released(
        **FEW, match_at=2, keep_background=True, threshold=0.2, dilate=3
    ),
    "paper, two characters": CharaConsist.paper(of_steps=STEPS, share_until=STEPS, merge_until=STEPS),
}
SEEDS = {"released, background kept": 3, "paper, two characters": 4}  # of those whose pairs show all characters
LATENTS = 1e-4


@functools.cache
def weights():
    """Random ones; queries and keys large enough that attention looks somewhere."""
    network = randomised(lambda: FluxTransformer(FLUX, nnx.Rngs(0)), np.random.default_rng(0))
    return {
        name: x * (2.0 if "query_norm" in name or "key_norm" in name else 1.0)
        for name, x in parameters(network).items()
    }


def inputs(characters, seed):
    """Prompts that differ in what the characters do, and noise."""
    random = np.random.default_rng(seed)
    normal = lambda *shape: random.standard_normal(shape).astype(np.float32)
    said = [0, 0, 0, 1, 1, 2, 3, -1, -1] if characters == 2 else [0, 0, 0, 0, 1, 1, 2, -1, -1]
    text = normal(1 + FRAMES, TEXT, FLUX.text_dim)
    text[1:, :6] = text[:1, :6]
    texts = Texts(
        text=text, pooled=normal(1 + FRAMES, FLUX.pooled_dim), words=np.array([said] * (1 + FRAMES), np.int32)
    )
    return texts, normal(1, 1, 2 * GRID[1], 2 * GRID[2], FLUX.channels)


@functools.partial(jax.jit, static_argnames=("method", "layout", "characters"))
def step(weights, x, row, texts, tracking, at, *, method, layout, characters):
    model = merge(abstract(lambda: FluxTransformer(FLUX, nnx.Rngs(0)))[0], weights)
    fixed = {"layout": layout, "characters": characters}
    return characonsist.denoise(method, model, x, row, texts, jnp.float32(GUIDANCE), tracking, at, **fixed)


@dataclasses.dataclass
class Case:
    method: CharaConsist
    characters: int
    texts: Texts
    noise: np.ndarray
    table: samplers.Steps

    def program(self, x, row, tracking, at):
        own = jax.tree.map(lambda leaf: leaf[: x.shape[0]], self.texts)
        fixed = {"layout": LAYOUT, "characters": self.characters}
        return step(weights(), x, row, own, tracking, at, method=self.method, **fixed)

    def alone(self, x, row, tracking, at):
        """The same program with nothing shared."""
        plain = jax.tree.map(np.zeros_like, (at.double, at.single, at.merge))
        return self.program(x, row, tracking, dataclasses.replace(at, double=plain[0], single=plain[1], merge=plain[2]))

    def draw(self, program):
        return characonsist.draw(self.method, program, jnp.asarray(self.noise), self.table, FLUX, frames=FRAMES)


@pytest.fixture(scope="module", params=CASES, ids=lambda name: name.split(",")[0])
def case(request):
    characters = 2 if "two" in request.param else 1
    texts, noise = inputs(characters, SEEDS[request.param])
    return Case(CASES[request.param], characters, texts, noise, samplers.euler(STEPS, 1.5))


def test_lock_step_equals_the_cached_form(case, record_property):
    before = step._cache_size()
    latents, tracking = case.draw(case.program)
    # One program whatever the step, and one for the identity picture alone where the background is kept.
    assert step._cache_size() - before == (2 if case.method.keep_background else 1)
    group = Group(
        Network(weights(), FLUX), case.method, GRID[1:], list(np.float64(case.texts.text)),
        list(np.float64(case.texts.pooled)), list(case.texts.words), [*case.table.sigma, 0.0], np.float64(GUIDANCE),
        case.characters,
    )  # fmt: skip
    expected = group.run(np.float64(patchify(jnp.asarray(case.noise), FLUX.patch)[0]))
    for name, margins in group.margins.items():
        record_property(f"margin {name}", float(min(margins)))
    errors = [relative_error(ours, theirs) for ours, theirs in zip(patchify(latents, FLUX.patch), expected)]
    record_property("relative errors", errors)
    assert max(errors) <= LATENTS
    # What is compared is the method: pairs were found, and frames would be others without it.
    tracked = np.asarray(tracking.tracked)
    assert set(np.unique(tracked)) == set(range(1 + case.characters))
    alone, _ = case.draw(case.alone)
    changed = [relative_error(a, b) for a, b in zip(alone, latents)]
    assert changed[0] <= 1e-6 and min(changed[1:]) > 10 * LATENTS
