"""Time porting at the real dimensions of Wan2.1-T2V-1.3B, and how much memory it takes.

    python tools/bench_port.py --out docs/bench --machine "a CPU with 2 cores"

It writes 2.8 GB of random bfloat16 weights into a temporary folder and ports them: safetensors to safetensors, to orbax
and into arrays on the first device. Each is measured in a process of its own, in turns with plain copies of the same
bytes by one thread, to a file and into memory, and the fastest of several runs counts. The source is in the cache of
the operating system by then; whatever is written is on the disk (fsync) before its time is taken.
Where other work takes the processors, `processor_seconds` says how much of the time was the program's own.
Memory is the peak of the process above what it took before it began, which is what the interpreter and jax take.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from kaleido_jax import porting
from kaleido_jax.models.mapping import torch_shapes
from kaleido_jax.models.wan.config import WanConfig
from kaleido_jax.porting.formats import layouts
from kaleido_jax.porting.safetensors import TensorInfo
from kaleido_jax.porting.writing import write_file
from kaleido_jax.testing.benchmark import save_report

CASES = ("safetensors", "orbax", "arrays")
CHUNK = 8 << 20


def write_source(folder: Path) -> int:
    """The original release's tensors with random finite bits; gives their bytes."""
    row, config = layouts("wan")["original"], WanConfig.t2v_1_3b()
    shapes = torch_shapes(row.table(config), row.family.abstract_parameters(config))
    tensors = {name: TensorInfo(np.dtype(jnp.bfloat16), shape) for name, shape in shapes.items()}
    random = np.random.default_rng(0)
    block = random.integers(0, 2**16, CHUNK // 2, np.uint16) & np.uint16(0xBFFF)  # exponents of finite numbers

    def chunks(name: str) -> Iterator[np.ndarray]:
        left = tensors[name].nbytes // 2
        while left:
            yield block[:left]
            left -= min(left, len(block))

    write_file(folder / "diffusion_pytorch_model.safetensors", tensors, chunks)
    return sum(info.nbytes for info in tensors.values())


def memory(field: str) -> int:
    """Bytes that this process takes now (VmRSS) or took at most (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """(seconds, seconds of all processors that the process had of them)."""
    began, used = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - began, time.process_time() - used


def copy_to_file(source: Path, target: Path) -> None:
    with source.open("rb", buffering=0) as read, target.open("wb", buffering=0) as written:
        buffer = memoryview(bytearray(CHUNK))
        while count := read.readinto(buffer):
            written.write(buffer[:count])
        os.fsync(written.fileno())
    target.unlink()


def copy_to_memory(source: Path) -> None:
    data = memoryview(bytearray(source.stat().st_size))
    with source.open("rb", buffering=0) as read:
        done = 0
        while done < len(data):
            done += read.readinto(data[done : done + CHUNK])


def measure(case: str, folder: Path, repeats: int) -> dict[str, float]:
    """Seconds and peak memory of one case, in this process."""
    source = folder / "source" / "diffusion_pytorch_model.safetensors"
    nbytes, target = source.stat().st_size, folder / "target"

    def ported() -> None:
        if case == "arrays":
            jax.block_until_ready(porting.load(source)[1])
        else:
            porting.port(source, target, to="orbax" if case == "orbax" else "diffusers", overwrite=True)

    jax.devices()
    copy_to_file(source, folder / "copy")  # warms the cache
    porting.inspect(source)  # traces the model's shapes, as every run does
    before = memory("VmRSS")
    times = [timed(ported)]
    peak = memory("VmHWM") - before
    copies, to_memory = [], []
    for attempt in range(repeats):
        if attempt:
            times.append(timed(ported))
        copies.append(timed(lambda: copy_to_file(source, folder / "copy")))
        to_memory.append(timed(lambda: copy_to_memory(source)))
    (seconds, used), (copy, copy_used), (copy_to, _) = min(times), min(copies), min(to_memory)
    return {
        "seconds": seconds,
        "processor_seconds": used,
        "gigabytes_per_second": nbytes / seconds / 1e9,
        "seconds_of_a_copy_to_a_file": copy,
        "processor_seconds_of_a_copy_to_a_file": copy_used,
        "seconds_of_a_copy_into_memory": copy_to,
        "throughput_of_a_copy_to_a_file": copy / seconds,
        "throughput_of_a_copy_into_memory": copy_to / seconds,
        "peak_gigabytes": peak / 1e9,
        "peak_gigabytes_beyond_the_arrays": (peak - (0 if case == "safetensors" else nbytes)) / 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/bench"), help="folder for the report")
    parser.add_argument("--machine", default="", help="the machine in words, for the report")
    parser.add_argument("--folder", type=Path, help="where to write 9 GB for a while; default: a temporary folder")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES, help="what to measure; default: all")
    parser.add_argument("--measure", choices=CASES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.folder, args.repeats)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        (Path(folder) / "source").mkdir()
        report: dict[str, object] = {"bytes": write_source(Path(folder) / "source")}
        for case in args.cases:
            command = [sys.executable, __file__, "--measure", case, "--folder", folder, "--repeats", str(args.repeats)]
            ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            report[case] = json.loads(ended.stdout.splitlines()[-1])
            print(case, report[case], flush=True)
    print(save_report(args.out, "port", args.machine, report))


if __name__ == "__main__":
    main()
