"""The files of one video: the video, its contact sheet, and last its record, which says that the others are whole."""

import contextlib
import dataclasses
import enum
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from kaleido_jax.errors import UsageError, printable
from kaleido_jax.media.contact_sheet import contact_sheet
from kaleido_jax.media.storage import make_writable_folder, written_whole
from kaleido_jax.media.video import write_mp4
from kaleido_jax.pipeline.record import differences, file_sha256, read_record, record_of, request_of

if TYPE_CHECKING:
    from kaleido_jax.pipeline.generation import Generation
    from kaleido_jax.pipeline.request import Settings

SHEET_BYTES = 4_000_000  # more than a sheet has ever taken


class Found(enum.Enum):
    """What is under the names of a request's outputs."""

    NOTHING = "nothing"
    FINISHED = "finished"  # exactly what is asked for
    OTHER = "other"  # something else, or something unfinished


def refuse_folders(outputs: Iterable[Path]) -> None:
    """Raises UsageError if a file is to be written where a folder is."""
    for output in outputs:
        if output.is_dir():
            raise UsageError(f"The output {printable(str(output))} is a folder; choose another output name.")


def found_files(
    files: Sequence[Path], record_path: Path, request: dict[str, Any], *, named: Path | None = None
) -> tuple[Found, str]:
    """Whether files and their record are there and are those of `request`; and in words what is not as asked for.

    `named` is the file that the words name where the request differs; by default the first that is there.
    """
    present = [output for output in (*files, record_path) if output.exists()]
    if not present:
        return Found.NOTHING, ""
    record = read_record(record_path)
    if record is None:
        return Found.OTHER, f"{printable(str(present[0]))} exists and has no record of how it was made"
    changed = differences(record, request)
    if changed:
        named = named or present[0]
        return Found.OTHER, f"{printable(str(named))} was made with another {' and another '.join(changed)}"
    hashes = record.get("outputs")
    for output in files:
        if not isinstance(hashes, dict) or not output.is_file() or file_sha256(output) != hashes.get(output.name):
            return Found.OTHER, f"{printable(str(output))} is not the file that its record describes"
    return Found.FINISHED, ""


@dataclasses.dataclass(frozen=True)
class Outputs:
    """Paths of the three files of a video."""

    video: Path
    sheet: Path
    record: Path

    @classmethod
    def of(cls, path: str | Path) -> "Outputs":
        """The outputs beside `path`, which must end in .mp4. Raises UsageError if it does not."""
        video = Path(path)
        if video.suffix.lower() != ".mp4":
            raise UsageError(f"The output is {printable(str(path))!r}; its name must end in .mp4.")
        return cls(video, video.with_suffix(".sheet.png"), video.with_suffix(".json"))

    @property
    def paths(self) -> dict[str, Path]:
        return {"video": self.video, "sheet": self.sheet, "record": self.record}

    def refuse_inputs(self, inputs: Iterable[str]) -> None:
        """Raises UsageError if one of the outputs is one of the input files, under whatever name."""
        for given in inputs:
            for output in self.paths.values():
                same = False
                with contextlib.suppress(OSError, ValueError):  # one of them is not there
                    same = output.samefile(given)
                if same:
                    raise UsageError(f"{printable(str(output))} would overwrite an input; choose another output name.")

    def make_room(self, settings: "Settings") -> None:
        """Raises StorageError unless the folder can be made and takes files of about this size."""
        assert settings.frames and settings.height and settings.width
        make_writable_folder(self.video.parent, SHEET_BYTES + settings.frames * settings.height * settings.width)
        refuse_folders(self.paths.values())

    def found(self, request: dict[str, Any]) -> tuple[Found, str]:
        """Whether these files are there and are those of `request`; and in words what is not as asked for."""
        return found_files((self.video, self.sheet), self.record, request, named=self.video)

    def check(self, generation: "Generation", *, overwrite: bool) -> None:
        """Raises UsageError if anything but this generation would be overwritten; StorageError without room."""
        self.refuse_inputs(reference.name for reference in generation.references if reference.name)
        found, what = self.found(_request(generation))
        if found is Found.OTHER and not overwrite:
            raise UsageError(f"{what}; overwrite it or choose another output name.")
        self.make_room(generation.settings)

    def write(self, generation: "Generation") -> None:
        """Writes all three; a file appears under its name only when it is whole, the record last."""
        rate = generation.config.defaults.frames_per_second
        references, settings = generation.references, generation.settings
        painted = generation.reconstructions  # one for each reference, or none
        sheet = contact_sheet(
            generation.video,
            [*(reference.pixels[0] for reference in references), *(again[0] for again in painted)],
            [reference.subject for reference in references] * (2 if painted else 1),
            prompt=generation.prompt,
            caption=_caption(generation),
            frames_per_second=rate,
        )
        model = str(generation.folder or generation.config.name)
        with (
            written_whole(self.record) as record,
            written_whole(self.sheet) as picture,
            written_whole(self.video) as video,
        ):
            write_mp4(video, generation.video, rate)
            Image.fromarray(sheet).save(picture)
            hashes = {self.video.name: file_sha256(video), self.sheet.name: file_sha256(picture)}
            request, loras = _request(generation), generation.loras
            document = record_of(request, references, settings, model, hashes, loras, generation.scene)
            record.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _request(generation: "Generation") -> dict[str, Any]:
    g = generation
    return request_of(g.prompt, g.references, g.settings, g.config, g.folder, g.loras, g.scene)


def _caption(generation: "Generation") -> str:
    config, s = generation.config, generation.settings
    assert s.frames
    return (
        f"{config.name}, {config.method}   ·   {s.width} x {s.height}, {s.frames} frames at "
        f"{config.defaults.frames_per_second} a second   ·   {s.sampler}, {s.steps} steps, shift {s.shift:g}, "
        f"guidance {s.guidance:g}   ·   seed {s.seed}"
        + ("   ·   references again as the network paints them" if generation.reconstructions else "")
    )
