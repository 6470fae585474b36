"""Count the bundles on the path of one visited block, ours and splash attention's, from the TPU compiler's schedule.

    python tools/bench_bundles.py v5p:2x2x1 v6e:2x2 tpu7x:2x2x1 --out docs/bench     # needs the tpu extra, and no TPU

A bundle is about one cycle when nothing waits. The kernels are compiled at equal block sizes, the compiler writes down
its final schedule, and of each kernel's loop over blocks the bundles are counted: from the loop's head to its end, less
what is jumped over for most blocks (regions without a matrix product: the first and the last block of a row, transfers
that begin). Ours has two such loops, for blocks that are visible in full and in part; splash has one, over a mask that
shows everything. Besides: `products`, how many cycles the matrix units take for the products alone, over the bundles
(above 1, and near it, the units are what a block waits for), accesses to spilled registers, and which share of the
slots of each kind of unit is taken: what is near 1 is what a block waits for.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

TOKENS, HEADS, HEAD_DIM = 4096, 2, 128
BLOCKS = ((512, 512), (512, 1024))  # queries x keys, forward; the gradients' are the first
# Of a core in a cycle: four matrix units of 128 x 128, or two of 256 x 256.
MULTIPLICATIONS = {"v5e": 4 * 128**2, "v5p": 4 * 128**2, "v6e": 2 * 256**2, "tpu7x": 2 * 256**2}
_BUNDLE = re.compile(r"\s*(?:0x)?([0-9a-f]+)\s+([A-Z]{2})?\s*:\s*((?:>\s*)*)\{(.*)")
_JUMP = re.compile(r"sbr\.rel \(!?%\w+\) target = \$region(\d+)")
_DELAY = 4  # bundles after a jump that still run


class Bundle(NamedTuple):
    label: str | None
    depth: int | None  # of loops around it; None where the schedule does not say, in empty bundles
    text: str


class Loop(NamedTuple):
    path: list[int]  # the bundles that run for most blocks
    spills: int

    @property
    def bundles(self) -> int:
        return len(self.path)


def read_schedule(text: str) -> list[Bundle]:
    """The bundles by address; notes that stand between two of them belong to the one before."""
    bundles: list[Bundle] = []
    for line in text.splitlines():
        found = _BUNDLE.match(line)
        if found and int(found[1], 16) == len(bundles):
            marks = found[3].count(">")
            bundles.append(Bundle(found[2], None if found[4].startswith("}") and not marks else marks, found[4]))
        elif bundles:
            bundles[-1] = bundles[-1]._replace(text=bundles[-1].text + "\n" + line)
    return bundles


def loops(bundles: list[Bundle]) -> list[Loop]:
    """The innermost loops with matrix products, in the order of the program."""
    found = []
    for start, bundle in enumerate(bundles):
        if bundle.label == "LB" and bundle.depth:
            outside = (i for i in range(start, len(bundles)) if (bundles[i].depth or bundle.depth) < bundle.depth)
            found.append((start, next(outside, len(bundles))))
    holds = lambda piece: any("vmatmul" in bundle.text for bundle in bundles[slice(*piece)])
    within = lambda inner, outer: outer[0] < inner[0] and inner[1] <= outer[1]
    working = [piece for piece in found if holds(piece)]
    return [_count(bundles, *piece) for piece in working if not any(within(other, piece) for other in working)]


def _count(bundles: list[Bundle], start: int, end: int) -> Loop:
    skipped: set[int] = set()
    for i in range(start, end):
        for region in _JUMP.findall(bundles[i].text):
            note = re.compile(rf"Start/End empty region {region}\b")
            target = next((j for j in range(i + 1, end) if note.search(bundles[j].text)), None)
            if target is not None:
                jumped = range(i + 1 + _DELAY, target)
                if not any("vmatmul" in bundles[j].text for j in jumped):
                    skipped.update(jumped)
    path = [i for i in range(start, end) if i not in skipped]
    return Loop(path, sum(bool(re.search(r"\bv(ld|st)\b.*_spill", bundles[i].text)) for i in path))


def taken(text: str, loop: Loop) -> dict[str, float]:
    """By kind of unit, the share of its slots that a loop takes, where it is more than a tenth.

    text: the compiler's table with a row for each bundle; its second line names the units, the third has their slots.
    """
    lines = text.splitlines()
    units, slots = lines[1].split(", "), [int(number) for number in lines[2].split()]
    rows = [[int(number) for number in line.split()] for line in lines[4:] if line.strip()]
    used = {unit: sum(rows[i][column] for i in loop.path) for column, unit in enumerate(units)}
    shares = {unit: used[unit] / (slot * loop.bundles) for unit, slot in zip(units, slots) if slot}
    return {unit: round(share, 2) for unit, share in shares.items() if share > 0.1}


def products(target: str, kernel: str, block_q: int, block_k: int, bundles: int) -> float:
    """The least cycles that a block's products take, over the bundles; how many products, by the kernel's name."""
    count = 4 if "dkv" in kernel else 3 if "dq" in kernel else 2
    return count * block_q * block_k * HEAD_DIM / MULTIPLICATIONS[target.partition(":")[0]] / bundles


def compile_one(target: str, which: str, block_q: int, block_k: int) -> None:
    """In a process of its own, because the compiler reads where to write its schedule once."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    devices = topologies.get_topology_desc(platform="tpu", topology_name=target).devices
    sharding = NamedSharding(Mesh(np.array(devices[:1]), ("chip",)), PartitionSpec())
    shape = lambda *sizes, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding)
    if which.startswith("ours"):
        from kaleido_jax.attention import pallas_tpu
        from kaleido_jax.attention.reference import Visibility

        x, bits = shape(1, TOKENS, HEADS, HEAD_DIM), shape(1, TOKENS, dtype=jnp.uint32)
        statistic = shape(1, HEADS, TOKENS, dtype=jnp.float32)
        sizes = pallas_tpu.BlockSizes(block_q, block_k)

        def forward(q, k, v, reads, groups):
            return pallas_tpu.forward(q, k, v, Visibility(reads, groups, None, None), HEAD_DIM**-0.5, sizes=sizes)

        def backward(q, k, v, reads, groups, lse):
            visibility = Visibility(reads, groups, None, None)
            return pallas_tpu.backward(q, k, v, visibility, q, lse, q, lse, HEAD_DIM**-0.5, sizes=sizes)

        arguments = (x, x, x, bits, bits)
        function, arguments = (forward, arguments) if which == "ours forward" else (backward, (*arguments, statistic))
    else:
        from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
        from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

        x = shape(HEADS, TOKENS, HEAD_DIM)
        blocks = splash.BlockSizes(
            block_q=block_q, block_kv=block_k, block_kv_compute=block_k, block_q_dkv=block_q, block_kv_dkv=block_k,
            block_kv_dkv_compute=block_k, block_q_dq=block_q, block_kv_dq=block_k,
        )  # fmt: skip
        mask = masks.MultiHeadMask([masks.FullMask((TOKENS, TOKENS))] * HEADS)
        kernel: Any = splash.make_splash_mha(mask, head_shards=1, q_seq_shards=1, block_sizes=blocks)
        total = lambda q, k, v: kernel(q, k, v).astype(jnp.float32).sum()
        function = kernel if which == "splash forward" else jax.grad(total, argnums=(0, 1, 2))
        arguments = (x, x, x)
    jax.jit(function).trace(*arguments).lower(lowering_platforms=("tpu",)).compile()


def measure(target: str, which: str, block_q: int, block_k: int) -> dict[str, list[tuple[Loop, dict[str, float]]]]:
    """By kernel, its loops over blocks, each with the units it takes."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_ENABLE_COMPILATION_CACHE": "0",
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_ACCELERATOR_TYPE": os.environ.get("TPU_ACCELERATOR_TYPE", "v5litepod-16"),
            "TPU_WORKER_HOSTNAMES": "localhost",
            "LIBTPU_INIT_ARGS": f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true",
        }
        words = [sys.executable, __file__, target, "--compile", which, str(block_q), str(block_k)]
        subprocess.run(words, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        made = {}
        for path in sorted(Path(folder).glob("*-final_bundles.txt")):
            name = re.sub(r"^\d+-|-\d+-final_bundles\.txt$", "", path.name)
            if "schedule-analysis" not in name and (found := loops(read_schedule(path.read_text()))):
                tables = [*Path(folder).glob(f"*-{name}-*final_hlo-static-per-bundle-utilization.txt")]
                made[name] = [(loop, taken(tables[0].read_text(), loop) if tables else {}) for loop in found]
        return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="+", metavar="TARGET", help="a TPU with its shape, such as v5p:2x2x1")
    parser.add_argument("--out", type=Path, help="folder of attention-bundles.json, whose other targets stay")
    parser.add_argument("--compile", nargs=3, metavar=("WHICH", "QUERIES", "KEYS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.compile:
        compile_one(args.targets[0], args.compile[0], *map(int, args.compile[1:]))
        return 0
    path = args.out / "attention-bundles.json" if args.out else None
    report: dict[str, Any] = json.loads(path.read_text()) if path and path.exists() else {}
    for target in args.targets:
        report.pop(target, None)
        print(f"\n{target}\n{'block':12} {'kernel':34} {'loop':8} {'bundles':>8} {'products':>9} {'spills':>7}")
        for block in BLOCKS:
            for which in ("forward", *(("gradients",) if block == BLOCKS[0] else ())):
                for whose in ("ours", "splash"):
                    for kernel, found in measure(target, f"{whose} {which}", *block).items():
                        names = ("full", "partial") if whose == "ours" and len(found) == 2 else ("full",) * len(found)
                        for name, (loop, units) in zip(names, found):
                            size, part = f"{block[0]} x {block[1]}", products(target, kernel, *block, loop.bundles)
                            row = f"{size:12} {kernel:34} {name:8} {loop.bundles:8} {part:9.2f} {loop.spills:7}"
                            print(row, " ", *(f"{unit} {share:.2f}" for unit, share in units.items()), flush=True)
                            numbers = {"bundles": loop.bundles, "spills": loop.spills, "products": round(part, 3)}
                            kernels = report.setdefault(target, {}).setdefault(size, {})
                            kernels.setdefault(kernel, {})[name] = {**numbers, "units": units}
        if path:
            path.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
