"""Work that several jobs share: each does the I-th of N parts."""

import argparse
from collections.abc import Mapping

# Names of variables of the environment that say which of how many processes this one is, from 0.
CLUSTERS = (
    ("SLURM_PROCID", "SLURM_NTASKS"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("JOB_COMPLETION_INDEX", "JOB_COMPLETIONS"),
    ("TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES"),
)


def part(text: str) -> tuple[int, int]:
    """(1, 8) of "2/8": which part, from 0, of how many."""
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a part such as 2/8")
    return int(index) - 1, int(count)


def part_of_cluster(environment: Mapping[str, str]) -> str | None:
    """The part, such as "2/8", of this process by what Slurm, Open MPI, Kubernetes or a TPU say of it; None: alone."""
    for index, count in CLUSTERS:
        if index in environment and count in environment:
            hosts = environment[count]
            total = int(hosts) if hosts.isdigit() else len(hosts.split(","))
            return f"{int(environment[index]) + 1}/{total}"
    return None
