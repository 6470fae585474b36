"""Import every module of the installed package, and compile what needs an extra that is not there."""

import compileall
import importlib
import pathlib
import pkgutil
import sys

import kaleido_jax

EXTRAS = {"beartype", "diffusers", "tensorflow_datasets", "torch", "transformers"}
folder = pathlib.Path(kaleido_jax.__file__).parent
modules = sorted(module.name for module in pkgutil.walk_packages([str(folder)], "kaleido_jax."))
for name in modules:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        print(f"{name} needs {error.name}")
print(f"Python {sys.version.split()[0]}: imported {len(modules)} modules from {folder.parent.name}")
sys.exit(not compileall.compile_dir(folder, quiet=1))
