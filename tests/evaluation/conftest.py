"""A run that takes no time: colours that move before colours, as folders of pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kaleido_jax.evaluation.runs import FORMAT

FRAMES, SIZE = 5, 32
RED, BLUE = (200, 30, 30), (30, 40, 210)
PLATES = ((60, 160, 70), (150, 150, 40))


def picture(colour, left: int, plate) -> tuple[np.ndarray, np.ndarray]:
    """A square of a colour before a plate, and where it is."""
    frame, mask = np.full((SIZE, SIZE, 3), plate, np.uint8), np.zeros((SIZE, SIZE), np.uint8)
    mask[10:20, left : left + 10] = 1
    frame[mask > 0] = colour
    frame[12:14, left + 2 : left + 5] = 20
    return frame, mask


def write_case(folder: Path, name: str, colour, plate, *, reference=RED, reference_plate=PLATES[0]) -> dict:
    """A video of a colour, and one reference with a mask; its entry in the manifest."""
    video = folder / "videos" / name
    video.mkdir(parents=True)
    masks = []
    for frame in range(FRAMES):
        pixels, mask = picture(colour, 2 + 3 * frame, plate)
        Image.fromarray(pixels).save(video / f"{frame:03d}.png")
        masks.append(mask)
    np.savez(folder / f"{name}.npz", masks=np.stack(masks), subjects=np.array([1]))
    pixels, mask = picture(reference, 9, reference_plate)
    Image.fromarray(pixels).save(folder / f"{name}.png")
    Image.fromarray(np.repeat(255 * mask[..., None], 3, -1)).save(folder / f"{name}.mask.png")
    return {
        "id": name, "video": f"videos/{name}", "prompt": f"{name} moves", "category": "object",
        "masks": f"{name}.npz",
        "references": [{"path": f"{name}.png", "subject": 1, "mask": f"{name}.mask.png"}],
    }  # fmt: skip


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """Cases "right" (the reference's colour, another plate), "wrong" (another colour, the reference's plate)."""
    folder = tmp_path / "run"
    cases = [
        write_case(folder, "right", RED, PLATES[1]),
        write_case(folder, "wrong", BLUE, PLATES[0]),
    ]
    (folder / "manifest.json").write_text(json.dumps({"format": FORMAT, "name": "squares", "cases": cases}))
    return folder
