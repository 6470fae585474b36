"""Time attention on this machine's device: ours and its peers, dense and under every method's mask.

    python tools/bench_attention.py --machine "an H100 SXM" --out docs/bench

One run, unattended: after `--seconds` nothing new begins, and what is left is reported as not measured; a program that
hangs or kills its process is reported as such, and the others go on in a new one. Peers that are not installed or do
not take a problem are reported with their reason. Forward, and forward with gradients, in bfloat16
(float32 on CPUs). The mask is data: making lists of blocks, or a dense mask, is inside the time; compiling is not. All
of a problem's programs take turns and the fastest of several runs counts.

For each problem the report has f, the fraction of pairs of tokens that is visible, the fraction of blocks that each of
our kernels visits, and for each program milliseconds and TFLOP/s counted by what is visible. On CPUs two heads of 4,096
and of 16,384 tokens come first, with XLA's own matrix product among the programs, of whose rate the reference is to
reach nine tenths. `--shrink 8` makes all problems small, to try the tool.
"""

import argparse
import functools
import importlib
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs memory as well

import jax
import jax.numpy as jnp
import numpy as np
from attention_cases import HEAD_DIM, Case, backend_blocks, cases, gradient

from kaleido_jax.attention import attention
from kaleido_jax.attention.ranges import as_ranges
from kaleido_jax.testing.benchmark import fastest, save_report, threads
from kaleido_jax.testing.supervise import Journal, supervise

Program = Callable[[], object]
Attend = Callable[..., jax.Array]  # of q, k, v and the mask


class Unable(Exception):
    """Why a peer does not take a problem."""


def ours(case: Case, backend: str) -> Attend:
    return lambda q, k, v, mask: attention(q, k, v, mask, backend=backend)


def jax_nn(case: Case, implementation: str) -> Attend:
    def attend(q, k, v, mask):
        dense = None if mask is None else mask.dense()[:, None]
        return jax.nn.dot_product_attention(q, k, v, mask=dense, implementation=implementation)

    return attend


def tokamax(case: Case, implementation: str) -> Attend:
    if importlib.util.find_spec("tokamax") is None:
        raise Unable("tokamax is not installed")
    peer = importlib.import_module("tokamax")

    def attend(q, k, v, mask):
        dense = None if mask is None else mask.dense()[:, None]
        return peer.dot_product_attention(q, k, v, mask=dense, implementation=implementation)

    return attend


def tokamax_ranges(case: Case) -> Attend:
    """Its Hopper kernel with one range of keys a query, over sorted keys; the ranges are known beforehand.

    Ranges are no part of its public functions, so a release of it may come without them: a row with a reason.
    """
    if importlib.util.find_spec("tokamax") is None:
        raise Unable("tokamax is not installed")
    api, base = (importlib.import_module(f"tokamax._src.ops.attention.{name}") for name in ("api", "base"))
    ranges = None if case.mask is None else as_ranges(case.mask)
    if ranges is None:
        raise Unable("the mask is no range of keys for each query")

    def attend(q, k, v, mask):
        order = jnp.asarray(ranges.order[0])
        limits = base.Mask(k_start=jnp.asarray(ranges.start)[:, None], k_end=jnp.asarray(ranges.end)[:, None])
        kernel = api.IMPLEMENTATIONS.get("mosaic_gpu") or api.IMPLEMENTATIONS["mosaic"]  # by version
        return kernel(q, k[:, order], v[:, order], mask=limits)

    return attend


def pallas_core(case: Case, kernel: str) -> Attend:
    """The examples of attention for GPUs that come with jax."""
    if case.mask is not None:
        raise Unable("has no mask of this kind")
    if kernel == "triton":
        if case.heads != case.key_heads:
            raise Unable("has no grouped heads")
        from jax.experimental.pallas.ops.gpu import attention as peer

        return lambda q, k, v, mask: peer.mha(q * HEAD_DIM**-0.5, k, v, segment_ids=None, sm_scale=1.0)
    from jax.experimental.pallas.ops.gpu import attention_mgpu as peer

    blocks = {"block_q_dkv": 64, "block_kv_dkv": 64, "block_q_dq": 64, "block_kv_dq": 64}
    config = peer.TuningConfig(block_q=64, block_kv=128, max_concurrent_steps=2, **blocks)
    half = lambda x: x.astype(jnp.float16)
    return lambda q, k, v, mask: peer.attention(half(q * HEAD_DIM**-0.5), half(k), half(v), config)


def splash(case: Case) -> Attend:
    if case.mask is not None:
        raise Unable("takes masks that are static or dense; at this size neither fits")
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as peer
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    blocks = peer.BlockSizes(**dict.fromkeys(_SPLASH_BLOCKS, 512))
    full = masks.MultiHeadMask([masks.FullMask((case.tokens, case.tokens))] * case.heads)
    kernel = peer.make_splash_mha(full, head_shards=1, q_seq_shards=1, block_sizes=blocks)
    heads_first = lambda x: x.transpose(0, 2, 1, 3)
    apply = jax.vmap(kernel)
    return lambda q, k, v, mask: heads_first(apply(heads_first(q) * HEAD_DIM**-0.5, heads_first(k), heads_first(v)))


_SPLASH_BLOCKS = (
    *("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute"),
    *("block_q_dq", "block_kv_dq"),
)


def jax_programs(platform: str) -> dict[str, Callable[[Case], Attend]]:
    """By name, what makes attend(q, k, v, mask) for a problem, or raises Unable."""
    made: dict[str, Callable[[Case], Attend]] = {}
    for backend in backend_blocks(platform):
        made[backend] = functools.partial(ours, backend=backend)
    if platform == "tpu":
        return made | {"splash": splash, "tokamax mosaic": functools.partial(tokamax, implementation="mosaic")}
    if platform == "gpu":
        for name in ("mosaic", "triton", "cudnn", "xla_chunked"):
            made[f"tokamax {name}"] = functools.partial(tokamax, implementation=name)
        made |= {"tokamax mosaic, ranges": tokamax_ranges}
        made |= {f"jax pallas {name}": functools.partial(pallas_core, kernel=name) for name in ("mosaic", "triton")}
        return made | {"jax.nn cudnn": functools.partial(jax_nn, implementation="cudnn")}
    return made | {"jax.nn xla": functools.partial(jax_nn, implementation="xla")}


def torch_programs(case: Case, platform: str, inputs: Any) -> dict[str, dict[str, Program] | str]:
    """scaled_dot_product_attention and FlexAttention of PyTorch, where it is installed for this platform."""
    names = ("torch sdpa", "torch flex_attention")
    if importlib.util.find_spec("torch") is None:
        return dict.fromkeys(names, "torch is not installed")
    import torch
    from torch.nn import functional

    cuda = platform == "gpu"
    if platform == "tpu" or (cuda and not torch.cuda.is_available()):
        return dict.fromkeys(names, "torch is installed without this device")
    device = "cuda" if cuda else "cpu"
    torch.set_num_threads(threads())
    to_torch = lambda x: (
        torch.from_numpy(np.array(x.astype(jnp.float32))).to(device, dtype).transpose(1, 2).contiguous()
    )
    dtype = torch.bfloat16 if cuda else torch.float32
    q, k, v = (to_torch(x).requires_grad_() for x in inputs)
    shared = case.heads != case.key_heads
    vector = lambda x: torch.from_numpy(np.asarray(x).astype(np.int64)).to(device)
    if case.mask is not None:
        reads, groups = vector(case.mask.reads), vector(case.mask.groups)
        zeros = np.zeros(case.tokens, np.int64)
        q_sample = vector(zeros if case.mask.q_sample is None else case.mask.q_sample)
        k_sample = vector(zeros if case.mask.k_sample is None else case.mask.k_sample)

    def visible(batch, head, i, j):
        return ((reads[i] & groups[j]) != 0) & (q_sample[i] == k_sample[j]) & (q_sample[i] >= 0)

    def sdpa():
        mask = None
        if case.mask is not None:
            places = torch.arange(case.tokens, device=device)
            mask = visible(0, 0, places[:, None], places[None])
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=shared)

    made: dict[str, dict[str, Program] | str] = {names[0]: _torch_kinds(sdpa, (q, k, v), cuda)}
    if not cuda:
        return made | {names[1]: "is for GPUs"}
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch.compiler.reset()  # every problem is compiled for its own shape
    torch.cuda.empty_cache()
    compiled, build = torch.compile(flex_attention), torch.compile(create_block_mask)

    def flex():
        mask = None if case.mask is None else build(visible, None, None, case.tokens, case.tokens, device=device)
        return compiled(q, k, v, block_mask=mask, enable_gqa=shared)

    return made | {names[1]: _torch_kinds(flex, (q, k, v), cuda)}


def _torch_kinds(attend: Callable, inputs: Any, cuda: bool) -> dict[str, Program]:
    import torch

    wait = torch.cuda.synchronize if cuda else lambda: None

    def forward():
        with torch.no_grad():
            attend()
        wait()

    def both():
        torch.autograd.grad(attend().sum(), inputs)
        wait()

    return {"forward": forward, "forward and gradients": both}


def _jax_kinds(attend: Attend, inputs: Any, case: Case) -> dict[str, Program]:
    mask = jax.tree.map(jnp.asarray, case.mask)
    forward = jax.jit(attend)
    both = jax.jit(gradient(attend))
    return {"forward": lambda: forward(*inputs, mask), "forward and gradients": lambda: both(*inputs, mask)}


def measure(case: Case, platform: str, over: float, repeats: int, journal: Journal) -> dict[str, Any]:
    """The report of one problem: programs that fail say why; after `over` (perf_counter) nothing more begins."""
    journal.begin(case.name, "making it")
    inputs = case.inputs(jnp.float32 if platform == "cpu" else jnp.bfloat16)
    programs: dict[str, dict[str, Program] | str] = {}
    for name, make in jax_programs(platform).items():
        try:
            programs[name] = _jax_kinds(make(case), inputs, case)
        except Exception as reason:  # peers raise what they like; the others still run
            programs[name] = _reason(reason)
    try:
        programs |= torch_programs(case, platform, inputs)
    except Exception as reason:
        programs["torch"] = _reason(reason)
    report: dict[str, Any] = {}
    for kind, work in (("forward", 1.0), ("forward and gradients", 3.5)):
        runs: dict[str, Program] = {}
        report[kind] = {name: kinds for name, kinds in programs.items() if isinstance(kinds, str)}
        for name, kinds in programs.items():
            if isinstance(kinds, str):
                continue
            if time.perf_counter() > over:
                report[kind][name] = "not measured: the time was over"
                continue
            if reason := journal.failed(case.name, kind, name):
                report[kind][name] = reason
                continue
            journal.begin(case.name, kind, name)
            try:
                jax.block_until_ready(kinds[kind]())  # compiles
                runs[name] = kinds[kind]
            except Exception as reason:
                report[kind][name] = _reason(reason)
        announce = functools.partial(journal.begin, case.name, kind)
        report[kind] |= _timed(runs, work * case.flops(), repeats, over, announce)
    blocks = {}
    for name, sizes in backend_blocks(platform).items():
        visited, partial = case.visited(*sizes)
        blocks[name] = {"block": f"{sizes[0]} x {sizes[1]}", "visited": visited, "partial": partial}
    shape = {"tokens": case.tokens, "heads": case.heads, "key heads": case.key_heads, "head_dim": HEAD_DIM}
    return {**shape, "f": case.visible, "blocks": blocks, **report}


def _timed(
    runs: Mapping[str, Program], flops: float, repeats: int, over: float, announce: Callable[[str], None]
) -> dict[str, Any]:
    if time.perf_counter() > over:
        return dict.fromkeys(runs, "not measured: the time was over")
    try:
        times = fastest(runs, repeats, announce)
    except Exception as reason:  # out of memory, once all of them are there
        return dict.fromkeys(runs, _reason(reason))
    return {
        name: {"milliseconds": 1e3 * seconds, "TFLOP/s of what is visible": flops / seconds / 1e12}
        for name, seconds in times.items()
    }


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {text[0]}"[:200] if not isinstance(error, Unable) else text[0]


def beside_products(tokens: int, repeats: int, announce: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Attention of two heads beside XLA's product of two square matrices and torch SDPA, in turns, in float32."""
    case = Case(f"beside products, {tokens} tokens", tokens, 2, 2, None)
    inputs, size = case.inputs(jnp.float32), min(2048, tokens)
    x, product = jnp.ones((size, size), jnp.float32), jax.jit(jnp.matmul)
    ours_kinds = _jax_kinds(ours(case, "reference"), inputs, case)
    torch_kinds = torch_programs(case, "cpu", inputs)["torch sdpa"]
    made: dict[str, Any] = {"tokens": tokens, "heads": 2, "head_dim": HEAD_DIM}
    for kind, work in (("forward", 1.0), ("forward and gradients", 3.5)):
        runs: dict[str, Program] = {"product": lambda: product(x, x), "reference": ours_kinds[kind]}
        if not isinstance(torch_kinds, str):
            runs["torch sdpa"] = torch_kinds[kind]
        flops = {"product": 2.0 * size**3} | dict.fromkeys(("reference", "torch sdpa"), work * case.flops())
        rates = {name: flops[name] / seconds / 1e12 for name, seconds in fastest(runs, repeats, announce).items()}
        made[kind] = {f"{name}, TFLOP/s": rate for name, rate in rates.items()}
        made[kind]["reference / product"] = rates["reference"] / rates["product"]
        if "torch sdpa" in rates:
            made[kind]["reference / torch sdpa"] = rates["reference"] / rates["torch sdpa"]
    return made


def print_case(name: str, report: Mapping[str, Any]) -> None:
    print(f"\n{name}: f = {report['f']:.3f}; {report['tokens']} tokens", flush=True)
    for kind in ("forward", "forward and gradients"):
        print(f"  {kind}")
        for program, result in report[kind].items():
            numbers = isinstance(result, Mapping) and [*result.values()]
            print(f"    {program:24}", f"{numbers[0]:9.3f} ms {numbers[1]:8.2f} TFLOP/s" if numbers else result)


def work(args: argparse.Namespace, journal: Journal) -> None:
    """Measures what the journal does not hold yet."""
    platform = jax.default_backend()
    over = args.over - time.time() + time.perf_counter()
    done = journal.finished()
    problems = [case for case in cases(args.shrink) if args.only in case.name]
    if not done:
        journal.finish("device", jax.devices()[0].device_kind)
        journal.finish("names", [case.name for case in problems])
    for tokens in (4096 // args.shrink**2, 16384 // args.shrink**2) if platform == "cpu" else ():
        name = f"beside XLA's product, {tokens} tokens"
        if args.only not in name or name in done or journal.failed(name) or time.perf_counter() > over:
            continue
        journal.begin(name)
        result = beside_products(tokens, args.repeats, lambda _: journal.begin(name))
        journal.finish(name, result)
        for kind in ("forward", "forward and gradients"):
            numbers = (f"{key} {number:.3g}" for key, number in result[kind].items())
            print(f"{name}, {kind}:", ", ".join(numbers), flush=True)
    for case in problems:
        if case.name in done:
            continue
        if time.perf_counter() > over:
            journal.finish(case.name, "not measured: the time was over")
        elif reason := journal.failed(case.name, "making it"):
            journal.finish(case.name, reason)
        else:
            report = measure(case, platform, over, args.repeats, journal)
            journal.finish(case.name, report)
            print_case(case.name, report)


def arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", default="", help="the machine in words, for the report")
    parser.add_argument("--out", type=Path, help="folder for the report")
    parser.add_argument("--seconds", type=float, default=400.0, help="begin nothing new after this long")
    parser.add_argument("--patience", type=float, default=120.0, help="what does nothing for so many seconds hangs")
    parser.add_argument("--repeats", type=int, default=5, help="runs of which the fastest counts")
    parser.add_argument("--shrink", type=int, default=1, help="divide the sides of pictures by this")
    parser.add_argument("--only", default="", help="problems whose name has this")
    parser.add_argument("--over", type=float, default=0.0, help=argparse.SUPPRESS)  # of a worker: when, by time.time
    parser.add_argument("--journal", type=Path, help=argparse.SUPPRESS)  # of a worker: its file
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    words = sys.argv[1:] if words is None else words
    args = arguments(words)
    if args.journal:
        work(args, Journal(args.journal))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "journal")
        started = ["--journal", str(journal.path), "--over", str(time.time() + args.seconds)]
        command = [sys.executable, os.path.abspath(__file__), *words, *started]
        ended = supervise(command, journal, seconds=args.seconds + 60, patience=args.patience)
        found = journal.finished()
    device, names = found.pop("device", "unknown"), found.pop("names", [])
    problems = {name: found.pop(name, "not measured: the time was over") for name in names}
    if args.out:
        report = {"device": device, "shrink": args.shrink} | found | {"problems": problems}
        print(save_report(args.out, "attention", args.machine, report, device=device))
    return 0 if ended else 1


if __name__ == "__main__":
    sys.exit(main())
