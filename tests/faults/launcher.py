"""Starts runs of `kaleido train` as processes of their own and kills them: python launcher.py, commands on its input.

It imports everything once and forks, so that a start costs no imports: jax makes its threads when it is first used, not
when it is imported. Every line of input is a JSON object

    {"arguments": ["train", ...], "output": FILE, "kill": [POINT, N] or null, "devices": D,
     "largest_file": BYTES or null}

and is answered by a line {"pid": ...}, and by {"status": ...} when the process has ended: its exit code, or minus the
signal that ended it. `kill` names a point of POINTS that the process ends itself at, by SIGKILL, when it comes there
for the N-th time. Videos are not encoded and pictures not drawn: neither is tested, and compiling the programs for it
would take most of the time.
"""

import importlib
import json
import os
import resource
import signal
import sys
from pathlib import Path

import numpy as np

from tests.faults.points import POINTS

for name in (
    "jax.experimental.multihost_utils",
    "kaleido_jax.cli.main",
    "kaleido_jax.cli.train",
    "kaleido_jax.pipeline.compile_cache",
    "kaleido_jax.training.loop",
    "kaleido_jax.training.miniature",
    "tyro",
):
    importlib.import_module(name)


def arm(point: str, count: int) -> None:
    """Make the process kill itself there."""
    where, holder, name, moment = POINTS[point]
    module = importlib.import_module(f"kaleido_jax.{where}")
    if holder == "Saver":
        owner = module.ocp.StandardCheckpointer
    else:
        owner = getattr(module, holder) if holder else module
    original, calls = getattr(owner, name), 0

    def armed(*args, **options):
        nonlocal calls
        # Before the first step there is nothing to lose; removing counts where a checkpoint is removed.
        calls += name != "rmtree" or (Path(args[0]).is_dir() and Path(args[0]).name.isdigit())
        if calls == count and moment == "half":
            args[0]._file.write('{"step": 99, "lo')
            args[0]._file.flush()
        if calls == count and moment != "after":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **options)
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, armed)


def run(job: dict) -> None:
    """In the forked process: never returns."""
    output = os.open(job["output"], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    import jax

    jax.config.update("jax_num_cpu_devices", job["devices"])
    if job["largest_file"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["largest_file"], job["largest_file"]))
    from kaleido_jax.training import loop
    from kaleido_jax.training.run import Run

    Run._encode = lambda self, clips: np.repeat(clips[:, ::4, 4::8, 4::8, :1] / np.float32(127.5) - 1, 4, axis=-1)
    loop.draw_sheet = lambda *_: None
    if job["kill"]:
        arm(*job["kill"])
    from kaleido_jax.cli.main import main

    code = main(job["arguments"])
    sys.stderr.flush()
    os._exit(code)  # as `kaleido_jax.cli.program` does, and not through the launcher's own end


def main() -> None:
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            run(job)
        print(json.dumps({"pid": pid}), flush=True)
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"status": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    main()
