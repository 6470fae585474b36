"""Videos for a file of prompts on many hosts: each makes its share on its own devices, again if it did not finish.

Start it once on every host of a job (srun, mpirun, an indexed Kubernetes job, all workers of a TPU VM); which share is
whose, the cluster says, or --part does:

    python tools/generate_on_mesh.py requests.jsonl --out videos --model runs/14b/model --mesh data=2,sequence=4
    python tools/generate_on_mesh.py requests.jsonl --out videos --part 2/8 --tries 3

The file has a JSON object a line, as `kaleido generate --prompts` takes them; videos are named by lines. What is
there already, made by the same request, is left as it is: a job that was stopped is continued by starting it again.
On a TPU, TPU_PROCESS_BOUNDS=1,1,1 TPU_CHIPS_PER_PROCESS_BOUNDS=2,2,1 gives a host of four chips these alone.
"""

import argparse
import os
import subprocess
import sys
import time

from kaleido_jax.cli.parts import part_of_cluster
from kaleido_jax.errors import ExitCode

# What starting again cannot mend.
FINAL = (ExitCode.DONE, ExitCode.USAGE, ExitCode.BAD_INPUT, ExitCode.INTERRUPTED, ExitCode.TERMINATED)


def main(words: list[str] | None = None) -> int:
    """Returns the exit code of this host's share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", help="a file of JSON lines")
    parser.add_argument("--out", default="outputs", help="the folder of the videos, on a disk that all hosts share")
    parser.add_argument("--part", help="this host's share, such as 2/8 (default: as the cluster says)")
    parser.add_argument("--tries", type=int, default=2, help="how often a share that broke off is started (default: 2)")
    parser.add_argument("--model", default="miniature", help="as of kaleido generate, like all further options")
    parser.add_argument("--mesh", help="of this host's devices, such as data=2,sequence=4")
    args, further = parser.parse_known_args(words)
    part = args.part or part_of_cluster(os.environ) or "1/1"
    command = [sys.executable, "-c", "from kaleido_jax.cli import program; program()", "generate"]
    command += ["--prompts", args.prompts, "--out", args.out, "--part", part, "--model", args.model, *further]
    command += ["--mesh", args.mesh] if args.mesh else []
    code = int(ExitCode.INTERNAL)
    for attempt in range(max(args.tries, 1)):
        began = time.monotonic()
        code = subprocess.run(command, check=False).returncode
        state = "done" if code == 0 else f"ended with {code}"
        print(f"part {part}, try {attempt + 1}: {state} after {time.monotonic() - began:.0f} s", file=sys.stderr)
        if code in FINAL:
            break
    return code


if __name__ == "__main__":
    sys.exit(main())
