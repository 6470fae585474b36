"""Print the path of a Python of the given version, also where it is installed but not chosen: find_python.py 3 12."""

import pathlib
import shutil
import subprocess
import sys

version = ".".join(sys.argv[1:])
found = [shutil.which(f"python{version}")]
if shutil.which("pyenv"):
    versions = pathlib.Path(
        subprocess.run(["pyenv", "root"], capture_output=True, text=True).stdout.strip(), "versions"
    )
    found += sorted(map(str, versions.glob(f"{version}.*/bin/python")), reverse=True)
for path in filter(None, found):
    answer = subprocess.run([path, "--version"], capture_output=True, text=True)
    if answer.stdout.startswith(f"Python {version}."):
        print(path)
        sys.exit()
sys.exit(1)
