"""Write the locked versions of every environment into requirements/.

    python tools/lock.py            # every environment
    python tools/lock.py core test  # only these

Run it with Python 3.11 (the oldest version we support) after changing a dependency in pyproject.toml, or to take newer
releases of everything. Each file holds one exact version a line and is given to pip as constraints
(`pip install -c`), so that one file serves every subset of an environment. All environments share `core`'s versions but
those of `APART`.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / "requirements"
# Extras of pyproject.toml that each lock covers, in the order of resolution: a later one keeps what `core` chose.
ENVIRONMENTS = {
    "core": (),
    "test": ("test", "data"),
    "tpu": ("tpu",),
    "cuda": ("cuda",),
    "curation": ("curation", "data"),
}
# Resolved without core's versions: Apache Beam does not take the newest protobuf, pyarrow, pillow and beartype.
APART = {"curation"}
# Chosen by hand: a release that has a CPU-only build for Python 3.11, as the default build brings gigabytes of CUDA.
PINS = {"torch": "2.13.0"}


def resolve(extras: tuple[str, ...], constraints: list[str]) -> dict[str, str]:
    """The version pip would install of each package, by normalised name; the project itself is left out."""
    target = f"{ROOT}[{','.join(extras)}]" if extras else str(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        report, limits = pathlib.Path(folder, "report.json"), pathlib.Path(folder, "constraints.txt")
        limits.write_text("\n".join(constraints) + "\n")
        command = [sys.executable, "-m", "pip", "install", "-qq", "--dry-run", "--ignore-installed"]
        command += ["--report", str(report), "-c", str(limits), target]
        subprocess.run(command, check=True)
        packages = [entry["metadata"] for entry in json.loads(report.read_text())["install"]]
    names = {re.sub(r"[-_.]+", "-", entry["name"]).lower(): entry["version"] for entry in packages}
    names.pop("kaleido-jax")
    # A local label such as +cpu says where a build came from; the lock names the release.
    return {name: version.partition("+")[0] for name, version in names.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environments", nargs="*", choices=[[], *ENVIRONMENTS], help="default: all")
    chosen = parser.parse_args().environments or list(ENVIRONMENTS)
    FOLDER.mkdir(exist_ok=True)
    for name in chosen:
        pins = [f"{package}=={version}" for package, version in PINS.items()]
        if name != "core" and name not in APART:
            pins += [line for line in (FOLDER / "core.txt").read_text().splitlines() if not line.startswith("#")]
        versions = resolve(ENVIRONMENTS[name], pins)
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        header = f"# Written by `python tools/lock.py {name}` with Python {python}.\n"
        lines = "".join(f"{package}=={version}\n" for package, version in sorted(versions.items()))
        (FOLDER / f"{name}.txt").write_text(header + lines)
        print(f"{name}: {len(versions)} packages")


if __name__ == "__main__":
    main()
