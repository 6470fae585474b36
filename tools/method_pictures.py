"""A picture of what each method makes at miniature size, for docs/methods.md, in a minute or two of a CPU.

    python tools/method_pictures.py
    python tools/method_pictures.py --models runs --only anyid lct

With `--models`, a method's model is FOLDER/NAME/model, as `kaleido train configs/NAME_miniature.py --workdir runs/NAME`
writes it. Where there is none, the method runs untuned on the miniature that comes with the package: its layout, masks,
times and guidance on weights that were trained for Kaleido's, what a method adds to the network at zero. Such a picture
shows that the method runs and what the base model makes of it, not how good the method is; its caption says so.
CharaConsist needs FLUX.1: `--flux FOLDER` makes its pictures with a release of it. Pictures in docs/pictures are linked
in docs/methods.md, where it has a place for them.
"""

import argparse
import dataclasses
import pathlib
import re
import sys
import tempfile
import time
from collections.abc import Iterable

import numpy as np
from flax import nnx
from PIL import Image

from kaleido_jax.bundle import Bundle, abstract, load_bundle, merge, parameters
from kaleido_jax.data.groups import TruthDescriber, draw_group, draw_scene
from kaleido_jax.data.world import World
from kaleido_jax.evaluation.cases import fidelity_case
from kaleido_jax.media.contact_sheet import contact_sheet
from kaleido_jax.methods import differential
from kaleido_jax.methods.registry import METHODS
from kaleido_jax.models.wan import WanTransformer
from kaleido_jax.pipeline.compile_cache import use_compile_cache
from kaleido_jax.pipeline.models import find
from kaleido_jax.pipeline.pipeline import Pipeline

DOCUMENT = pathlib.Path(__file__).resolve().parents[1] / "docs" / "methods.md"
OUT = DOCUMENT.parent / "pictures"
NAMES = ("kaleido", "anyid", "contextanyone", "lct")
GROUP = "in a forest,#a red cat with a white tail,#walks\non a beach at night,#a red cat with a white tail,#sleeps\n"


def untuned(base: Bundle, name: str) -> Bundle:
    """The miniature under another method; what the method adds to the network starts at zero."""
    config = dataclasses.replace(base.config, method=name, scheme=METHODS[name]().scheme, options=())
    transformer = base.transformer
    if name == "contextanyone":
        width = config.vae.z_dim * config.transformer.patch[1] * config.transformer.patch[2]
        sizes = dataclasses.replace(config.transformer, emphasis=True, image_dim=width)
        graph, shapes = abstract(lambda: WanTransformer(sizes, nnx.Rngs(0)))
        known = parameters(transformer)
        weights = {key: known.get(key, np.zeros(leaf.shape, leaf.dtype)) for key, leaf in shapes.items()}
        config, transformer = dataclasses.replace(config, transformer=sizes), merge(graph, weights)
    return dataclasses.replace(base, config=config, transformer=transformer)


def request(name: str, world: World) -> tuple[list[np.ndarray], str]:
    """References and a prompt of the held-out part of the world, of the kind that the method is made for."""
    if name == "anyid":
        group = next(g for g in (draw_group(world, n, "heldout", most=2, clip=5) for n in range(20))
                     if len(g.references) == 2)  # fmt: skip
        elements, words = differential.load_elements("miniature"), differential.Words()
        kept = differential.differing(group.shown, group.target, elements, TruthDescriber(), words)
        return [picture[0] for picture in group.references], differential.prompt(kept, separator=" ")
    if name == "lct":
        scene = draw_scene(world, 1, "heldout", shots=3)
        return [], " || ".join((scene.prompt, *scene.prompts))
    case = fidelity_case(world, 0)
    return [case.reference], case.sample.prompt


def draw(name: str, models: pathlib.Path | None, seed: int) -> np.ndarray:
    """The sheet of one method."""
    folder = None if models is None else models / name / "model"
    tuned = folder is not None and (folder / "config.json").exists()
    bundle = load_bundle(folder if tuned else find("miniature"))
    if not tuned and bundle.config.method != name:
        bundle = untuned(bundle, name)
    defaults = bundle.config.defaults
    frames = defaults.frames if name != "lct" else min(defaults.frames, 9)
    world = World((defaults.height, defaults.width), frames)
    references, prompt = request(name, world)
    made = Pipeline(bundle)(references=references, prompt=prompt, seed=seed, frames=frames)
    shown = [*references, *(picture[0] for picture in made.reconstructions)]
    trained = name == "kaleido" or tuned
    caption = f"{name}, {'trained at miniature size' if trained else 'untuned, on weights trained for kaleido'}"
    if made.reconstructions:
        caption += "; the second picture is the reference as the network paints it again"
    return contact_sheet(
        made.video,
        shown,
        list(range(len(shown))),
        prompt=prompt,
        caption=f"{caption}; seed {seed}, {made.settings.steps} steps",
        frames_per_second=defaults.frames_per_second,
    )


def draw_flux(folder: pathlib.Path, seed: int) -> np.ndarray:
    """Two pictures of one character by CharaConsist, side by side."""
    from kaleido_jax.pipeline.characonsist import ConsistentCharacters
    from kaleido_jax.pipeline.group_file import read_groups
    from kaleido_jax.pipeline.text_to_image import TextToImage, load_flux

    with tempfile.TemporaryDirectory() as folder_of_group:
        path = pathlib.Path(folder_of_group) / "groups.txt"
        path.write_text(GROUP)
        (group,) = read_groups(path)
    made = ConsistentCharacters(TextToImage(load_flux(folder)))(group, seed=seed)
    return np.concatenate(list(made.pixels), axis=1)


def with_links(text: str, names: Iterable[str]) -> str:
    """A document in which the places of these pictures, `<!-- picture: NAME, what it shows -->`, hold the pictures."""
    for name in names:
        text = re.sub(rf"^<!-- picture: {name}, (.*) -->$", rf"![\1](pictures/{name}.png)", text, flags=re.MULTILINE)
    return text


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=pathlib.Path, metavar="FOLDER", help="where trained models are")
    parser.add_argument("--out", type=pathlib.Path, default=OUT, metavar="FOLDER")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--flux", type=pathlib.Path, metavar="FOLDER", help="a release of FLUX.1, for CharaConsist")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(words)
    use_compile_cache()
    arguments.out.mkdir(parents=True, exist_ok=True)
    sheets = {name: lambda name=name: draw(name, arguments.models, arguments.seed) for name in arguments.only}
    if arguments.flux:
        sheets["characonsist"] = lambda: draw_flux(arguments.flux, arguments.seed)
    for name, make in sheets.items():
        began = time.monotonic()
        path = arguments.out / f"made-by-{name}.png"
        picture = Image.fromarray(make())
        picture.thumbnail((1400, 1400))
        picture.quantize(256).save(path, optimize=True)
        print(f"{path}: {time.monotonic() - began:.0f} s", flush=True)
    if arguments.out == OUT:
        DOCUMENT.write_text(with_links(DOCUMENT.read_text(), [f"made-by-{name}" for name in sheets]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
