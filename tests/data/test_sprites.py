"""Sprites: where they are placed, and that poses, families and textures are as varied as they claim."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from kaleido_jax.data.drawing import ellipse, generator
from kaleido_jax.data.objects import OBJECTS
from kaleido_jax.data.silhouettes import Part, Silhouette
from kaleido_jax.data.sprites import Painter, Pose, dominant_colour, draw_pose, draw_silhouette, identity, place
from kaleido_jax.data.textures import KINDS, Texture, paint_texture


@pytest.fixture(scope="module")
def painter() -> Painter:
    return Painter(None)


def flat(number: int, parts: tuple[Part, ...], colour=(200, 30, 30)):
    from dataclasses import replace

    # Some plain textures have light or grain on them: take a seed that has none.
    textures = (Texture(kind="plain", colours=(colour, colour, colour), seed=seed) for seed in range(40))
    plain = next(one for one in textures if not paint_texture(one, 32, None).reshape(-1, 3).std(0).any())
    silhouette = Silhouette(family="polygon", noun="shape", parts=parts)
    return replace(identity(number, False), silhouette=silhouette, body=plain, outline=0.0)


@pytest.mark.parametrize(
    ("x", "y", "height", "angle"), [(40.0, 50.0, 30.0, 0.0), (47.5, 40.25, 61.0, 0.7), (50.0, 50.0, 12.0, 2.0)]
)
def test_a_sprite_stands_where_it_is_placed(painter, x, y, height, angle):
    sprite = painter.sprite(flat(0, (Part(ellipse(0, 0, 0.8, 0.8, count=60)),)), Pose())
    canvas = Image.new("RGB", (96, 96), (255, 255, 255))
    placed = place(canvas, sprite, x, y, height, angle)
    assert placed is not None
    alpha, (left, top) = placed
    cover = np.asarray(alpha, np.float64) / 255
    centre_y, centre_x = ndimage.center_of_mass(cover)
    # Pixel i spans [i, i + 1), so its middle is at i + 0.5. A quarter of a pixel is what resampling may shift.
    assert abs(left + centre_x + 0.5 - x) < 0.25 and abs(top + centre_y + 0.5 - y) < 0.25
    # A disc's area; 6 % for the polygon, the resampling and 12-pixel discs.
    assert abs(cover.sum() / (np.pi * height**2 / 4) - 1) < 0.06


def test_turning_is_clockwise_and_mirroring_flips(painter):
    # A disc with a small disc at its right.
    sprite = painter.sprite(flat(2, (Part(ellipse(0, 0, 0.5, 0.5)), Part(ellipse(0.7, 0, 0.1, 0.1)))), Pose())

    def centre(angle: float, mirror: bool) -> np.ndarray:
        canvas = Image.new("RGB", (96, 96), (255, 255, 255))
        place(canvas, sprite, 48.0, 48.0, 60.0, angle, mirror)
        return np.array(ndimage.center_of_mass((np.asarray(canvas)[..., 1] < 128).astype(float))) - 47.5

    right = centre(0.0, False)
    assert right[1] < -1 and abs(right[0]) < 0.5  # the box's middle is placed; the large disc is left of it
    assert centre(0.0, True) == pytest.approx([right[0], -right[1]], abs=0.3)
    assert centre(np.pi / 2, False) == pytest.approx([right[1], right[0]], abs=0.4)


def test_outside_the_canvas_nothing_is_drawn(painter):
    canvas = Image.new("RGB", (32, 32))
    assert place(canvas, painter.sprite(flat(4, (Part(ellipse(0, 0, 0.5, 0.5)),)), Pose()), -60.0, 10.0, 20.0) is None
    assert not np.asarray(canvas).any()


def test_soft_edges_keep_the_colour(painter):
    """Half-covered pixels are a mix of subject and background, without a fringe of a third colour."""
    sprite = painter.sprite(flat(6, (Part(ellipse(0, 0, 0.8, 0.8, count=60)),), (255, 0, 0)), Pose())
    canvas = Image.new("RGB", (64, 64), (0, 0, 255))
    place(canvas, sprite, 32.0, 32.0, 40.0, 0.3)
    pixels = np.asarray(canvas, np.int16)
    assert pixels[..., 1].max() <= 2
    assert np.abs(pixels.sum(-1) - 255).max() <= 2  # rounding


def test_dominant_colour(painter):
    assert dominant_colour(painter.sprite(flat(8, (Part(ellipse(0, 0, 0.8, 0.8)),), (20, 60, 210)), Pose())) == "blue"


def test_poses_change_the_picture_and_rest_does_not(painter):
    one = identity(11, False)
    rest = np.asarray(painter.sprite(one, Pose()).picture)
    assert np.array_equal(rest, np.asarray(painter.sprite(one, Pose()).picture))
    assert (
        np.asarray(painter.sprite(one, draw_pose(generator(5))).alpha) != np.asarray(painter.sprite(one, Pose()).alpha)
    ).any()


def test_silhouettes_fill_their_square_and_never_leave_it(painter):
    rng = generator(9)
    for _ in range(120):
        silhouette = draw_silhouette(rng)
        everything = np.concatenate([part.outline for part in silhouette.parts])
        assert np.abs(everything).max() <= 0.8 + 1e-9
        assert np.ptp(everything, axis=0).max() == pytest.approx(1.6)


def test_every_object_is_one_that_a_pose_can_be_drawn_of(painter):
    from dataclasses import replace

    for i, build in enumerate(OBJECTS.values()):
        one = replace(
            identity(2 * i, False),
            silhouette=Silhouette(family="object", noun="thing", parts=tuple(build(generator(i)))),
        )
        alpha = np.asarray(painter.sprite(one, draw_pose(generator(i))).alpha)
        assert (alpha > 127).mean() > 0.03


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "photo"])
def test_textures(kind):
    colours = ((220, 40, 40), (30, 60, 200), (250, 220, 60))
    pictures = [paint_texture(Texture(kind=kind, colours=colours, seed=seed), 64, None) for seed in range(6)]
    assert all(p.shape == (64, 64, 3) and p.dtype == np.uint8 for p in pictures)
    if kind not in ("plain", "shaded"):
        assert all(p.reshape(-1, 3).std(0).max() > 8 for p in pictures)
        assert not np.array_equal(pictures[0], pictures[1])
    again = paint_texture(Texture(kind=kind, colours=colours, seed=0), 64, None)
    assert np.array_equal(again, pictures[0])


def test_a_photograph_texture_without_photographs_is_refused():
    with pytest.raises(ValueError, match="photographs=True"):
        paint_texture(Texture(kind="photo", colours=((0, 0, 0),) * 3, seed=1), 32, None)


def test_identities_are_spread_over_families_and_textures():
    many = [identity(number, True) for number in range(0, 1200, 2)]
    families = {one.silhouette.family for one in many}
    assert families == {"creature", "object", "blob", "polygon", "strokes", "cutout"}
    assert {one.body.kind for one in many} == set(KINDS)
