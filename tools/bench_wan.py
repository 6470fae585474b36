"""Time Wan's transformer against diffusers' on the CPU, at equal shapes, weights and threads.

    python tools/bench_wan.py --out outputs/bench

Wan2.1 1.3B half as wide and two layers deep, on five frames of 832 x 480 (3120 tokens) in float32: the velocity, and
a training step (gradient and AdamW; ours with its default of making norms and activations again). They take turns and
the fastest of several runs counts; compiling is not counted. Then the parts they rest on: the matrix products of
`kaleido_jax.models.layers` and the attention of `kaleido_jax.attention`, forward and with gradients, each as a share of
the rate of XLA's own matrix product in the same turns. And how long it takes to describe the 14B model without making
it.
"""

import argparse
import dataclasses
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from kaleido_jax.attention import attention
from kaleido_jax.models.layers import linear
from kaleido_jax.models.wan import WanConfig
from kaleido_jax.models.wan.params import FAMILY
from kaleido_jax.testing import relative_error
from kaleido_jax.testing.benchmark import fastest, save_report, threads
from kaleido_jax.testing.wan import pair, random_inputs, run_ours, run_peer

CONFIG = dataclasses.replace(WanConfig.t2v_1_3b(), dim=768, ffn_dim=4480, heads=6, layers=2)
LATENTS = (2, 60, 104)  # frames, height, width: 5 frames of 832 x 480, 3120 tokens
PRODUCTS = ((3120, 1536, 1536), (3120, 1536, 8960))  # tokens, inputs, outputs: the 1.3B's
ATTENTION = {"self-attention": (4096, 4096, 2, 128), "to the text": (4096, 512, 12, 128)}  # queries, keys, heads, width


def transformer(repeats: int) -> dict[str, dict[str, float]]:
    """Seconds of the forward pass and of a training step by both, and the error of each against float64."""
    model, parameters = pair(CONFIG)
    inputs = random_inputs(CONFIG, 1, *LATENTS)
    arrays, times = inputs.arrays, jnp.asarray(inputs.time)
    velocity = lambda: run_ours(parameters, arrays, times, CONFIG)

    def forward_peer():
        with torch.no_grad():
            return run_peer(model, inputs)

    report = {"forward": fastest({"ours": velocity, "diffusers": forward_peer}, repeats)}
    ours, theirs = np.asarray(velocity()), forward_peer().numpy()
    exact = run_peer_in_float64(model, inputs)

    optimizer = optax.adamw(1e-5)

    @jax.jit
    def step(parameters, state):
        loss = lambda p: jnp.square(run_ours(p, arrays, times, CONFIG)).mean()
        updates, state = optimizer.update(jax.grad(loss)(parameters), state, parameters)
        return optax.apply_updates(parameters, updates), state

    state = jax.jit(optimizer.init)(parameters)
    peer_optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=1e-4)

    def step_peer():
        peer_optimizer.zero_grad()
        run_peer(model, inputs).square().mean().backward()
        peer_optimizer.step()

    report["training step"] = fastest({"ours": lambda: step(parameters, state), "diffusers": step_peer}, repeats)
    for seconds in report.values():
        seconds["ratio"] = seconds["ours"] / seconds["diffusers"]
    error, peer_error = relative_error(ours, exact), relative_error(theirs, exact)
    report["error against float64"] = {"ours": error, "diffusers": peer_error, "ratio": error / peer_error}
    return report


def run_peer_in_float64(model, inputs) -> np.ndarray:
    with torch.no_grad():
        model.double()
        exact = run_peer(model, inputs).numpy()
        model.float()
    return exact


def rates(repeats: int) -> dict[str, dict[str, float]]:
    """GFLOP/s of our products and attention, and the share of XLA's own product of equal size beside them."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape).astype(np.float32))
    plain = jax.jit(lambda x, kernel: x @ kernel)
    product = jax.jit(linear)
    product_gradient = jax.jit(lambda x, kernel, dy: jax.vjp(linear, x, kernel)[1](dy))
    attend = jax.jit(lambda q, k, v: attention(q, k, v, backend="reference"))
    attend_gradient = jax.jit(
        lambda q, k, v, dy: jax.vjp(lambda *qkv: attention(*qkv, backend="reference"), q, k, v)[1](dy)
    )
    report = {}

    def measure(name, flops, own_flops, own, runs):
        seconds = fastest({"XLA": own, **{key: run for key, (_, run) in runs.items()}}, repeats)
        own_rate = own_flops / seconds["XLA"] / 1e9
        report[name] = {"XLA's matrix product": own_rate}
        for key, (count, _) in runs.items():
            rate = flops * count / seconds[key] / 1e9
            report[name] |= {key: rate, f"{key}, share": rate / own_rate}

    for n, i, o in PRODUCTS:
        x, kernel, dy = normal(n, i), normal(i, o), normal(n, o)
        runs = {
            "forward": (1, lambda x=x, kernel=kernel: product(x, kernel)),
            "gradients": (2, lambda x=x, kernel=kernel, dy=dy: product_gradient(x, kernel, dy)),
        }
        flops = 2.0 * n * i * o
        measure(f"product {n} x {i} x {o}", flops, flops, lambda x=x, kernel=kernel: plain(x, kernel), runs)

    n, i, o = PRODUCTS[0]
    x, kernel = normal(n, i), normal(i, o)
    for name, (queries, keys, heads, width) in ATTENTION.items():
        q, k, v, dy = (normal(1, m, heads, width) for m in (queries, keys, keys, queries))
        # Forward: scores and values. With gradients: those, then the scores again and four more products.
        runs = {
            "forward": (2, lambda q=q, k=k, v=v: attend(q, k, v)),
            "forward and gradients": (7, lambda q=q, k=k, v=v, dy=dy: attend_gradient(q, k, v, dy)),
        }
        flops = 2.0 * queries * keys * heads * width
        measure(name, flops, 2.0 * n * i * o, lambda: plain(x, kernel), runs)
    return report


def describing_the_14b() -> float:
    began = time.perf_counter()
    FAMILY.abstract_parameters(WanConfig.t2v_14b())
    FAMILY.torch_shapes(WanConfig.t2v_14b(), "original")
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a folder for the numbers as JSON")
    parser.add_argument("--machine", default="", help="what machine this is and what else it does, for the JSON")
    args = parser.parse_args()
    torch.set_num_threads(threads())
    report: dict = {"seconds to describe the 14B": describing_the_14b()}
    print(f"the 14B described in {report['seconds to describe the 14B']:.2f} s (limit 5 s)", flush=True)
    report["parts, GFLOP/s"] = rates(args.repeats)
    for name, numbers in report["parts, GFLOP/s"].items():
        shares = [f"{key} {value:.0f}" for key, value in numbers.items() if not key.endswith("share")]
        shares += [f"{key} {value:.2f}" for key, value in numbers.items() if key.endswith("share")]
        print(f"{name:28} " + ", ".join(shares), flush=True)
    report["transformer, seconds"] = transformer(args.repeats)
    for name, numbers in report["transformer, seconds"].items():
        print(f"{name:22} ours {numbers['ours']:.3g}, diffusers {numbers['diffusers']:.3g}: {numbers['ratio']:.2f}x")
    if args.out:
        print(save_report(args.out, "wan", args.machine, report))


if __name__ == "__main__":
    main()
