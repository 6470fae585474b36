"""From end to end on video made of photographs that scikit-image carries: a cat on gravel, with a changing rate, turned
by the container, and in ten bits; read, cut out and curated without weights."""

import io
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from kaleido_jax import config as configuration
from kaleido_jax.curation import pictures
from kaleido_jax.curation.dataset import CuratedSource
from kaleido_jax.curation.engine import curate
from kaleido_jax.curation.readers import read
from kaleido_jax.curation.report import audit_rows
from kaleido_jax.curation.stages import find_shots, process

pytest.importorskip("cv2")
pytest.importorskip("scenedetect")
data = pytest.importorskip("skimage.data")
FRAMES, RATE, HEIGHT, WIDTH = 24, 8, 80, 96
CONFIG = Path(__file__).parents[2] / "configs" / "curation_classical.py"


def film(zoom: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """(video, masks): the head of a cat crosses gravel, and grows by `zoom` on the way."""
    gravel = (
        Image.fromarray(np.repeat(data.gravel()[..., None], 3, -1)).resize((WIDTH, WIDTH)).crop((0, 0, WIDTH, HEIGHT))
    )
    cat = Image.fromarray(data.chelsea()[10:290, 110:390])
    video, masks = [], []
    for number in range(FRAMES):
        side = round(30 * (1 + zoom * number / FRAMES))
        y, x = np.mgrid[0:side, 0:side]
        inside = (x - side / 2 + 0.5) ** 2 + (y - side / 2 + 0.5) ** 2 < (side / 2) ** 2
        left, top = 2 + round(number * (WIDTH - 50) / FRAMES), 24
        frame, mask = np.array(gravel), np.zeros((HEIGHT, WIDTH), bool)
        mask[top : top + side, left : left + side] = inside
        frame[mask] = np.asarray(cat.resize((side, side)))[inside]
        video.append(frame)
        masks.append(mask)
    return np.stack(video), np.stack(masks)


def write(path: Path, video: np.ndarray, times: list[int], pixel_format: str = "yuv420p", turned: bool = False) -> None:
    """`times` in frames of RATE. turned: the frames lie on their side, and the container says so."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "10"})
        shown = np.rot90(video, 1, (1, 2)) if turned else video
        stream.height, stream.width, stream.pix_fmt = *shown.shape[1:3], pixel_format
        stream.time_base = Fraction(1, RATE)
        for time, picture in zip(times, shown):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    content = bytearray(buffer.getvalue())
    if turned:  # the matrix of the track's header, ISO/IEC 14496-12, 8.3.2: a quarter turn clockwise
        start = content.index(b"tkhd") + 4 + 4 + 5 * 4 + 2 * 4 + 4 * 2
        matrix = (0, 1 << 16, 0, -(1 << 16), 0, 0, video.shape[1] << 16, 0, 1 << 30)
        content[start : start + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in matrix)
    path.write_bytes(content)
    path.with_suffix(".txt").write_text("A ginger cat moves over the ground.")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Videos with what is in each: `slow` shows every third frame for twice as long."""
    place = tmp_path_factory.mktemp("photographs")
    steady = list(range(FRAMES))
    write(place / "ten_bits.mp4", film()[0], steady, "yuv420p10le")
    write(place / "turned.mp4", film()[0], steady, turned=True)
    write(place / "zoomed.mp4", film(0.3)[0], steady)
    kept = [number for number in range(FRAMES) if number % 3 != 2]
    write(place / "variable.mp4", film()[0][kept], kept)
    return place


@pytest.mark.parametrize("name", ["ten_bits", "turned", "zoomed", "variable"])
def test_the_cat_is_cut_out_where_it_is(folder, name):
    config = configuration.load(CONFIG)
    source = next(one for one in read(config, folder) if Path(one.path).stem == name)
    (shot,) = find_shots(source, config).clips
    clip = process(source, shot, config)
    video, masks = film(0.3 if name == "zoomed" else 0.0)
    assert clip.frames.shape == (17, HEIGHT, WIDTH, 3)
    shown = [number - (name == "variable" and number % 3 == 2) for number in range(17)]
    # Compression and 4:2:0 change a few levels; a frame of another moment or on its side differs by far more.
    assert np.abs(clip.frames.astype(int) - video[shown]).mean() < 6
    (one,) = clip.kept
    assert one.category == "cat" and one.masks is not None
    truth = masks[[shown[key] for key in clip.keys]]
    overlaps = [pictures.mask_overlap(mask, true) for mask, true in zip(one.masks, truth)]
    assert np.mean(overlaps) > 0.7


@pytest.mark.filterwarnings("ignore")  # tensorflow-datasets' own, with the protobuf that Beam holds back
def test_they_become_a_data_set(folder, tmp_path):
    config = replace(configuration.load(CONFIG), shards=1)
    curate(config, folder, tmp_path, None)
    rows = audit_rows(tmp_path / "dataset")
    assert sum(row["kept"] for row in rows) == 4 and {row["category"] for row in rows if row["kept"]} == {"cat"}
    source = CuratedSource(tmp_path / "dataset", frames=17, height=96, width=96)
    assert len(source) == 4 and all(source[number]["masks"].any() for number in range(4))
