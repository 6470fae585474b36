"""Print the N-th block of shell commands of a Markdown file: python block.py README.md 1."""

import pathlib
import re
import sys

path, number = sys.argv[1], int(sys.argv[2])
blocks = re.findall(r"^```(?:bash|sh)\n(.*?)^```$", pathlib.Path(path).read_text(), re.MULTILINE | re.DOTALL)
if len(blocks) < number:
    sys.exit(f"{path} has {len(blocks)} blocks of commands, not {number}")
print(blocks[number - 1].strip())
