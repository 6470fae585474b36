"""Sampling pairs: two clips of each request, with everything that judging and training need, in a folder."""

import dataclasses
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kaleido_jax.data.groups import TruthDescriber, draw_group
from kaleido_jax.data.world import World
from kaleido_jax.media.storage import written_whole
from kaleido_jax.media.video import write_mp4
from kaleido_jax.methods import differential
from kaleido_jax.pipeline.pipeline import Pipeline
from kaleido_jax.pipeline.references import read_references
from kaleido_jax.pipeline.request import Settings
from kaleido_jax.preference.files import PAIRS, Pair, append, read_pairs
from kaleido_jax.typing import UInt8

Clip = UInt8[np.ndarray, "f h w 3"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What two clips are made of: files or frames. group: what else shows the identity. truth: as in `Pair`."""

    prompt: str
    references: Sequence[Path | np.ndarray]
    group: Sequence[Path | np.ndarray] = ()
    truth: dict[str, Any] = field(default_factory=dict)


def world_requests(world: World, *, references: int, clip: int, photographs: bool = True) -> Iterator[Request]:
    """Requests of the world's training split without end: groups of an identity with their differential prompts."""
    elements, describer, comparer = differential.load_elements("miniature"), TruthDescriber(), differential.Words()
    number = 0
    while True:
        group = draw_group(world, number, "train", most=references, clip=clip)
        story = world.story(number, "train")
        kept = differential.differing(group.shown, group.target, elements, describer, comparer)
        yield Request(
            prompt=differential.prompt(kept, separator=" "),
            references=list(group.references),
            group=[group.video],
            truth={
                "height": world.height,
                "width": world.width,
                "frames": world.frames,
                "photographs": photographs,
                "world": world.seed,
                "identity": story.identities[0].number,
                "motion": group.target.motion,
                "scene": group.target.scene,
            },
        )
        number += 1


def sample_pairs(
    pipeline: Pipeline,
    requests: Iterable[Request],
    folder: str | Path,
    *,
    settings: Settings,
    progress: Callable[[str], None] = lambda text: None,
) -> int:
    """Makes the pairs of the requests that the folder does not have yet; returns how many it made.

    The clips of pair n have the seeds `settings.seed` + 2 n and one more. A pair is in the folder's list only once all
    of its files are there.
    """
    folder = Path(folder)
    there = read_pairs(folder) if (folder / PAIRS).exists() else {}
    whole, made = settings.resolved(pipeline.config), 0
    for number, request in enumerate(requests):
        name = f"{number:06d}"
        if name in there:
            continue
        progress(f"pair {number + 1}: {request.prompt}")
        _sample(pipeline, request, folder, name, whole, number)
        made += 1
    return made


def _sample(pipeline: Pipeline, request: Request, folder: Path, name: str, settings: Settings, number: int) -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    rate = pipeline.config.defaults.frames_per_second
    assert settings.height and settings.width and settings.frames
    shown = [_stored(x, folder, f"{name}/reference-{i}", rate) for i, x in enumerate(request.references, 1)]
    others = [_stored(x, folder, f"{name}/group-{i}", rate) for i, x in enumerate(request.group, 1)]
    references = read_references(
        [str(folder / file) for file in shown],
        height=settings.height,
        width=settings.width,
        frames=settings.frames,
        frames_per_second=rate,
    )
    arrays: dict[str, np.ndarray] = {}
    seeds = (settings.seed + 2 * number, settings.seed + 2 * number + 1)
    for side, seed in zip("ab", seeds):
        made = pipeline.generate(references, request.prompt, dataclasses.replace(settings, seed=seed))
        assert made.latents is not None
        arrays[side] = made.latents.astype(np.float16)
        with written_whole(folder / name / f"{side}.mp4") as path:
            write_mp4(path, made.video, rate)
    latents = pipeline.encode_references(references, settings)
    long = max(x.shape[1] for x in latents)
    arrays["references"] = np.stack(
        [np.pad(np.asarray(x)[0], ((0, long - x.shape[1]), *((0, 0),) * 3)).astype(np.float16) for x in latents]
    )
    arrays["reference_frames"] = np.asarray([x.shape[1] for x in latents], np.int32)
    with written_whole(folder / name / "latents.npz") as path, open(path, "wb") as file:
        np.savez(file, **arrays)
    pair = Pair(
        id=name,
        prompt=request.prompt,
        references=tuple(shown),
        group=(*shown, *others),
        a=f"{name}/a.mp4",
        b=f"{name}/b.mp4",
        latents=f"{name}/latents.npz",
        seeds=seeds,
        truth=request.truth,
    )
    append(folder, PAIRS, pair)


def _stored(shown: Path | np.ndarray, folder: Path, name: str, rate: int) -> str:
    """The name, in the folder, of a copy of a file, or of frames as a picture or a clip."""
    if isinstance(shown, np.ndarray):
        name = f"{name}.png" if len(shown) == 1 else f"{name}.mp4"
        with written_whole(folder / name) as path:
            if len(shown) == 1:
                Image.fromarray(shown[0]).save(path, format="PNG")
            else:
                write_mp4(path, shown, rate)
        return name
    name = f"{name}{shown.suffix.lower()}"
    with written_whole(folder / name) as path:
        shutil.copyfile(shown, path)
    return name
