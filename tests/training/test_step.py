"""One step: deterministic, guarded, and it learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kaleido_jax.training import optimizer
from kaleido_jax.training import step as step_functions
from kaleido_jax.training.state import create

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def batch(prepared):
    return prepared.source("train").batch(0)


def fresh(prepared):
    """The initial state in buffers of its own, since a step donates them."""
    return jax.tree.map(jnp.copy, prepared.initial)


def run(prepared, batch, steps: int, state=None):
    state, losses = fresh(prepared) if state is None else state, []
    for _ in range(steps):
        state, values = prepared.programs.train(state, batch, jnp.zeros((), jnp.float32))
        losses.append(float(values["loss"]))
    return state, losses


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_two_runs_give_the_same_bits_and_the_loss_falls(prepared, batch):
    first, losses = run(prepared, batch, 30)
    second, again = run(prepared, batch, 30)
    assert losses == again
    assert_equal(first, second)
    assert int(first.step) == 30
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:3])


def test_noise_depends_on_step_and_place_in_the_batch_only(prepared, batch):
    """The same sample at two places of a batch, and at two steps, sees different noise."""
    same = jax.tree.map(lambda x: np.repeat(x[:1], len(x), 0), batch)
    same = dataclasses.replace(same, indices=batch.indices)
    moved = dataclasses.replace(same, indices=batch.indices + 10)
    losses = [run(prepared, b, 2)[1] for b in (same, moved)]
    assert len({x for pair in losses for x in pair}) == 4


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(prepared, batch):
    state, _ = run(prepared, batch, 2)
    before = jax.tree.map(np.asarray, state)
    video = np.array(batch.video)
    video[0, 0, 0, 0, 0] = np.nan
    state, losses = run(prepared, dataclasses.replace(batch, video=video), 2, state)
    assert not np.isfinite(losses).any()
    for name in ("parameters", "average", "moments"):
        assert_equal(getattr(state, name), getattr(before, name))
    assert [int(x) for x in (state.step, state.skipped, state.skipped_in_a_row)] == [4, 2, 2]
    state, losses = run(prepared, batch, 1, state)
    assert np.isfinite(losses).all()
    assert [int(x) for x in (state.step, state.skipped, state.skipped_in_a_row)] == [5, 2, 0]


def test_losses_by_time_are_means_of_the_samples_that_were_drawn_there():
    losses, times = jnp.asarray([1.0, 2.0, 3.0, 4.0]), jnp.asarray([0.05, 0.15, 0.5, 1.0])
    seen = step_functions._averaged(step_functions._by_time(losses, times) | {"loss_of_video": jnp.asarray(2.5)})
    found = {name: float(value) for name, value in seen.items() if not np.isnan(value)}
    assert found == {"loss_at_0_to_0.2": 1.5, "loss_at_0.4_to_0.6": 3.0, "loss_at_0.8_to_1": 4.0, "loss_of_video": 2.5}
    assert len(seen) == 6


def test_mixed_reference_counts_use_one_program(prepared):
    source = prepared.source("train")
    counts = set()
    for step in range(4):
        batch = source.batch(step)
        counts |= set(np.asarray(batch.reference_counts).tolist())
        run(prepared, batch, 1)
    assert counts == {1, 2, 3}
    assert prepared.programs.compiled["train"] == 1


def test_the_optimizer_is_torchs_adamw_with_clipping():
    """Five steps on two parameters; 2e-6: float32 rounding of both sides."""
    config = optimizer.OptimizerConfig(learning_rate=0.1, weight_decay=0.05, clip_norm=1.0, beta2=0.99)
    random = np.random.default_rng(0)
    kernel, bias = random.normal(size=(3, 4)).astype(np.float32), random.normal(size=4).astype(np.float32)
    ours = {"net": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}}
    moments = optimizer.direction(config).init(ours)
    theirs = [torch.nn.Parameter(torch.tensor(kernel)), torch.nn.Parameter(torch.tensor(bias))]
    reference = torch.optim.AdamW(
        [{"params": theirs[:1], "weight_decay": 0.05}, {"params": theirs[1:], "weight_decay": 0.0}],
        lr=0.1,
        betas=(0.9, 0.99),
        eps=1e-8,
    )
    for step in range(5):
        gradients = [
            random.normal(size=p.shape).astype(np.float32) * (10.0 if step == 2 else 0.1) for p in (kernel, bias)
        ]
        with jax.numpy_dtype_promotion("standard"):
            directions, moments = optimizer.direction(config).update(
                {"net": {"kernel": jnp.asarray(gradients[0]), "bias": jnp.asarray(gradients[1])}}, moments, ours
            )
        ours = jax.tree.map(lambda p, d: p - 0.1 * d, ours, directions)
        for parameter, gradient in zip(theirs, gradients):
            parameter.grad = torch.tensor(gradient)
        torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        reference.step()
    np.testing.assert_allclose(ours["net"]["kernel"], theirs[0].detach().numpy(), rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(ours["net"]["bias"], theirs[1].detach().numpy(), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_what_reads_the_prompt_may_learn_more_slowly(kind):
    gradient = {
        "text": {"token_embedding": jnp.ones((4, 3))},
        "transformer": {
            "text_embedding.down.kernel": jnp.ones((3, 3)),
            "blocks.text.query.kernel": jnp.ones((2, 3, 3)),
        },
    }
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        usual, slow = (
            optimizer.direction(config).update(gradient, create(config, gradient).moments, gradient)[0]
            for config in (optimizer.OptimizerConfig(kind=kind), optimizer.OptimizerConfig(kind=kind, text_rate=0.25))
        )
    quarter = lambda part, name: np.testing.assert_array_equal(slow[part][name], 0.25 * usual[part][name])
    quarter("text", "token_embedding")
    quarter("transformer", "text_embedding.down.kernel")
    name = "blocks.text.query.kernel"
    np.testing.assert_array_equal(slow["transformer"][name], usual["transformer"][name])


def test_the_learning_rate_warms_up_and_falls_on_half_a_cosine():
    config = optimizer.OptimizerConfig(learning_rate=2.0, warmup_steps=4, final_fraction=0.1)
    rate = lambda step, progress: float(
        optimizer.learning_rate(config, jnp.asarray(step, jnp.float32), jnp.asarray(progress, jnp.float32))
    )
    assert [rate(s, 0.0) for s in range(5)] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert rate(100, 0.5) == pytest.approx(2.0 * 0.55)
    assert rate(100, 1.0) == pytest.approx(0.2)


def test_the_average_starts_at_the_parameters_and_follows_them():
    state = create(optimizer.OptimizerConfig(), {"net": {"kernel": jnp.ones((2,))}})
    assert_equal(state.average, state.parameters)
    moved = optimizer.average(jnp.zeros(()), jnp.ones(()), jnp.asarray(0.75))
    assert float(moved) == pytest.approx(0.25)


def test_muon_orthogonalises_the_blocks_matrices_and_leaves_the_rest_to_adamw():
    """Singular values come out nearly equal and the root mean square is 0.2, that of an AdamW update (its paper)."""
    muon = optimizer.OptimizerConfig(kind="muon", weight_decay=0.0, clip_norm=1e9)
    random = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)
    gradient = {"net": {"blocks.a.kernel": draw(3, 16, 8), "blocks.a.bias": draw(3, 8), "head.kernel": draw(16, 8)}}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        transformation = optimizer.direction(muon)
        direction, _ = transformation.update(gradient, transformation.init(gradient), gradient)
    for update, own in zip(direction["net"]["blocks.a.kernel"], gradient["net"]["blocks.a.kernel"]):
        singular = np.linalg.svd(np.asarray(update), compute_uv=False)
        # Five Newton-Schulz iterations bring singular values to within about 0.7 and 1.2 of a common value.
        assert singular.max() / singular.min() < 1.9
        assert np.sqrt(np.mean(np.square(update))) == pytest.approx(0.2, rel=0.15)
        assert float(jnp.sum(update * own)) > 0
    # The first step of Adam with Nesterov momentum moves every number by nearly the same amount, along the gradient.
    for name in ("blocks.a.bias", "head.kernel"):
        ratio = np.asarray(direction["net"][name] / jnp.sign(gradient["net"][name]))
        assert ratio.min() > 0 and ratio.max() / ratio.min() < 1.01
