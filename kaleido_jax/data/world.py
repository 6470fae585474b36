"""The procedural subject-to-video world: unlimited identities, scenes, motions, captions and ground-truth masks.

Everything is a function of (seed, split). A `Story` says what a sample shows, `render` draws it; evaluation builds
stories of its own. Identities with even numbers belong to the training split and those with odd numbers to the
held-out split, so the two never share one; scene seeds are split the same way, and photographs by name. References
show their subject in other poses, sizes and surroundings than the video does: they are drawn anew, never cut from its
frames. What a prompt leaves open is kept small, so that a small model has little to guess: subjects look right unless
they go to the left, the one that is named first stands on the left, and paths differ little in where they begin.
"""

from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
from PIL import Image

from kaleido_jax.data import photographs as photo_files
from kaleido_jax.data.captions import Looks, caption, vocabulary
from kaleido_jax.data.drawing import between, chance, generator, pick, weighted, whole
from kaleido_jax.data.motions import MOTIONS, SIZES, Path, draw_path
from kaleido_jax.data.scenes import PHOTO, SCENES, paint_scene
from kaleido_jax.data.sprites import Identity, Painter, Pose, Sprite, dominant_colour, draw_pose, identity, place
from kaleido_jax.data.textures import WORDS as TEXTURE_WORDS

__all__ = ["MOTIONS", "SPLITS", "Sample", "Story", "World", "vocabulary"]

SPLITS = ("train", "heldout")
MAX_REFERENCES = 3
MAX_SUBJECTS = 2
STANDING = ("right", "left", "hop", "still", "grow", "shrink")  # motions that keep to the floor where there is one
BACKGROUND = 0  # the subject index of a reference that shows the scene


@dataclass(frozen=True, kw_only=True)
class Story:
    """What one sample shows.

    Attributes:
        seed: of everything that the other fields leave open (paths, poses, reference surroundings).
        split: which photographs may appear; one of SPLITS.
        identities: one or two subjects, in the order of mention; subject i + 1 of masks and references.
        motions: one of MOTIONS for each subject.
        scene, scene_seed: a name of SCENES or "photo", and which of its variations.
        pictures: how many reference pictures each subject has.
        scene_given: whether one more reference shows the scene.
        prompt: the caption.
    """

    seed: int
    split: str
    identities: tuple[Identity, ...]
    motions: tuple[str, ...]
    scene: str
    scene_seed: int
    pictures: tuple[int, ...]
    scene_given: bool
    prompt: str


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One drawn story.

    Attributes:
        video: uint8 `[frames, height, width, 3]`.
        references: (picture, subject) pairs, all pictures of subject 1 first, the scene (subject 0) last; a picture is
            uint8 `[height, width, 3]` as large as a frame, its content fitted and centred on white.
        prompt: the caption, in lower case.
        masks: uint8 `[frames, height, width]`: which subject is seen at each pixel, 0 for none.
        truth: "story" (the Story), "motions", "scene", "colours" (the word for each subject's dominant colour).
    """

    video: np.ndarray
    references: list[tuple[np.ndarray, int]]
    prompt: str
    masks: np.ndarray
    truth: dict


class World:
    """Draws samples of one size.

    Args:
        size: height and width in pixels, or (height, width).
        frames: frames of a video.
        photographs: whether textures, scenes and backgrounds may be crops of scikit-image's photographs (which must be
            installed then). Worlds with and without them show different identities for the same seed.
        seed: of the world itself: other seeds have other samples throughout.
    """

    def __init__(self, size: int | tuple[int, int] = 96, frames: int = 17, *, photographs: bool = True, seed: int = 0):
        self.height, self.width = (size, size) if isinstance(size, int) else size
        if min(self.height, self.width) < 16 or frames < 1:
            raise ValueError(f"size is {size} and frames {frames}; a world needs at least 16 x 16 pixels and 1 frame.")
        self.frames = frames
        self.seed = seed
        self._arguments = (size, frames, photographs, seed)
        self._has_photographs = photographs
        self._painters: dict[str, Painter] = {}
        self._looks = lru_cache(maxsize=64)(self._see)

    def __reduce__(self):
        # A loader's worker gets the arguments and draws for itself; caches stay behind.
        size, frames, photographs, seed = self._arguments
        return partial(World, photographs=photographs, seed=seed), (size, frames)

    def sample(self, seed: int, split: str = "train") -> Sample:
        """The sample of (seed, split); the same arguments give the same bytes."""
        return self.render(self.story(seed, split))

    def identity(self, number: int) -> Identity:
        """The identity of `number`: even numbers are seen in training, odd ones are held out."""
        return identity(number, self._has_photographs)

    def story(self, seed: int, split: str = "train") -> Story:
        """What the sample of (seed, split) shows."""
        heldout = SPLITS.index(_checked("split", split, SPLITS))
        rng = generator(0x570, self.seed, seed, heldout)
        count = 1 if chance(rng, 0.7) else 2
        identities = tuple(self.identity(2 * int(rng.random() * 2**52) + heldout) for _ in range(count))
        motions = tuple(pick(rng, MOTIONS) for _ in range(count))
        scene = weighted(rng, {**dict.fromkeys(SCENES, 1.0), PHOTO: 2.5})
        scene_seed = 2 * int(rng.random() * 2**52) + heldout
        scene_given = chance(rng, 0.8 if scene == PHOTO else 0.1)
        room = MAX_REFERENCES - scene_given
        if count == 1:
            pictures = (min(weighted(rng, {1: 5, 2: 3, 3: 2}), room),)
        else:
            pictures = pick(rng, ((1, 1), (1, 1), (2, 1), (1, 2))) if room > 2 else (1, 1)
        looks = tuple(self.looks(one) for one in identities)
        prompt = caption(rng, looks, motions, scene, scene_given)
        return Story(
            seed=int(rng.random() * 2**52), split=split, identities=identities, motions=motions, scene=scene,
            scene_seed=scene_seed,
            pictures=pictures, scene_given=scene_given, prompt=prompt,
        )  # fmt: skip

    def looks(self, subject: Identity) -> Looks:
        """What a caption may say about `subject`."""
        return self._looks(subject)

    def _see(self, subject: Identity) -> Looks:
        colour = dominant_colour(self.painter_of(subject).sprite(subject, Pose(), fine=False))
        silhouette = subject.silhouette
        return Looks(
            family=silhouette.family,
            noun=silhouette.noun,
            colour=colour,
            texture=TEXTURE_WORDS.get(subject.body.kind, ""),
        )

    def render(self, story: Story) -> Sample:
        """Draws `story`."""
        rng = generator(0xD2A, self.seed, story.seed)
        plate = paint_scene(story.scene, story.scene_seed, self.height, self.width, self._photographs(story.split))
        count = len(story.identities)
        lanes = [(0.0, 1.0)] if count == 1 else [(0.02, 0.5), (0.5, 0.98)]
        low, high = SIZES if count == 1 else (0.36, 0.48)
        aspect = self.width / self.height
        paths = [
            draw_path(
                rng,
                motion,
                self.frames,
                aspect=aspect,
                lane=lane,
                floor=floor,
                grounded=plate.ground is not None,
                low=low,
                high=high,
            )
            for motion, lane, floor in zip(story.motions, lanes, _floors(rng, story.motions, plate.ground))
        ]
        actors = [self._actor(rng, subject, path) for subject, path in zip(story.identities, paths)]
        # Whoever stands lower is nearer.
        order = sorted(range(count), key=lambda i: float((paths[i].y + paths[i].height / 2).max()))
        grounded = [plate.ground is not None and motion in STANDING for motion in story.motions]
        for i in range(count):
            if grounded[
                i
            ]:  # a path places boxes as tall as they are long; put the feet of flatter subjects on the floor too
                x0, y0, x1, y1 = actors[i][0].box
                flat = 1 - (y1 - y0) / max(x1 - x0, y1 - y0)
                paths[i] = replace(paths[i], y=paths[i].y + flat / 2 * paths[i].height)
        video = np.empty((self.frames, self.height, self.width, 3), np.uint8)
        masks = np.zeros((self.frames, self.height, self.width), np.uint8)
        shadows = plate.ground is not None and chance(rng, 0.7)
        for frame in range(self.frames):
            picture = plate.picture.copy()
            for i in order:
                path, sprites = paths[i], actors[i]
                height = float(path.height[frame]) * self.height
                x, y = float(path.x[frame]) * self.width, float(path.y[frame]) * self.height
                sprite = sprites[int(path.gait[frame] * len(sprites)) % len(sprites)]
                if shadows and grounded[i]:
                    tall = (sprite.box[3] - sprite.box[1]) / max(
                        sprite.box[2] - sprite.box[0], sprite.box[3] - sprite.box[1]
                    )
                    floor = float((path.y + path.height * tall / 2).max()) * self.height
                    self._shade(picture, x, floor, height * 0.4)
                placed = place(picture, sprite, x, y, height, float(path.angle[frame]), path.mirror)
                if placed:
                    alpha, (left, top) = placed
                    seen = np.asarray(alpha) > 127
                    masks[frame, top : top + seen.shape[0], left : left + seen.shape[1]][seen] = i + 1
            video[frame] = np.asarray(picture)
        references = []
        for i, (subject, number) in enumerate(zip(story.identities, story.pictures)):
            references += [
                (self.picture(subject, whole(rng, 0, 2**52), split=story.split), i + 1) for _ in range(number)
            ]
        if story.scene_given:
            references.append((self._view(rng, plate.picture), BACKGROUND))
        colours = tuple(self.looks(one).colour for one in story.identities)
        truth = {"story": story, "motions": story.motions, "scene": story.scene, "colours": colours}
        return Sample(video=video, references=references, prompt=story.prompt, masks=masks, truth=truth)

    def picture(
        self, subject: Identity, seed: int, *, split: str = "train", style: str | None = None, pose: Pose | None = None
    ) -> np.ndarray:
        """A reference picture: `subject` in a pose of `seed`, fitted and centred on white, uint8 `[height, width, 3]`.

        Args:
            style: "white" (cut out), "scene" or "photo" (before something else); by default drawn, most of them white.
            pose: by default drawn.
        """
        rng = generator(0x2EF, seed)
        style = style or weighted(rng, {"white": 7, "scene": 2, "photo": 1})
        sprite = self.painter_of(subject).sprite(subject, pose or draw_pose(rng))
        angle = between(rng, -0.2, 0.2)
        canvas = Image.new("RGB", (self.width, self.height), (255, 255, 255))
        wide, tall = _extent(sprite, angle)  # of a subject whose longer side is 1
        if style == "white":
            height = between(rng, 0.68, 0.97) * min(self.width / wide, self.height / tall)
            place(canvas, sprite, self.width / 2, self.height / 2, height, angle, False)
            return np.asarray(canvas).copy()
        aspect = between(rng, 0.65, 1.55)
        width = min(self.width, round(self.height * aspect))
        high = min(self.height, round(width / aspect))
        name = PHOTO if style == "photo" else pick(rng, tuple(SCENES))
        # Seeds above 2^53 are never drawn for the scene of a video.
        plate = paint_scene(name, 2**54 + 2 * seed + SPLITS.index(split), high, width, self._photographs(split))
        picture = plate.picture
        height = between(rng, 0.5, 0.93) * min(width / wide, high / tall)
        free_x, free_y = max(width - height * wide, 0) / 2, max(high - height * tall, 0) / 2
        x, y = width / 2 + between(rng, -0.9, 0.9) * free_x, high / 2 + between(rng, -0.9, 0.9) * free_y
        place(picture, sprite, x, y, height, angle, False)
        canvas.paste(picture, ((self.width - width) // 2, (self.height - high) // 2))
        return np.asarray(canvas).copy()

    def _actor(self, rng: np.random.Generator, subject: Identity, path: Path) -> list[Sprite]:
        """The sprites that a subject goes through in one turn of its gait."""
        base = draw_pose(rng, 0.5)
        moves = path.reach > 0 and any(part.swing for part in subject.silhouette.parts)
        painter = self.painter_of(subject)
        # Below half the sprite's resolution, averaging while placing is enough to smooth its edges.
        fine = float(path.height.max()) * self.height * 2.2 > painter.resolution
        steps = 6 if moves else 1
        return [
            painter.sprite(
                subject,
                Pose(gait=i / steps, reach=path.reach, bend=base.bend, squash=base.squash, lift=base.lift),
                fine,
            )
            for i in range(steps)
        ]

    def _shade(self, picture: Image.Image, x: float, y: float, radius: float) -> None:
        """A soft shadow on the floor."""
        w, h = max(round(2 * radius), 2), max(round(radius * 0.45), 2)
        axis_x, axis_y = np.linspace(-1, 1, w, dtype=np.float32), np.linspace(-1, 1, h, dtype=np.float32)
        soft = np.clip(1 - axis_x[None] ** 2 - axis_y[:, None] ** 2, 0, 1) * 110
        picture.paste((15, 15, 25), (round(x - w / 2), round(y - h / 2)), Image.fromarray(soft.astype(np.uint8)))

    def _view(self, rng: np.random.Generator, plate: Image.Image) -> np.ndarray:
        """The scene as a reference shows it: a part of the plate, enlarged, sometimes mirrored."""
        share = between(rng, 0.72, 0.95)
        w, h = plate.width * share, plate.height * share
        x, y = rng.random() * (plate.width - w), rng.random() * (plate.height - h)
        view = plate.resize((self.width, self.height), Image.Resampling.BICUBIC, box=(x, y, x + w, y + h))
        return np.asarray(view).copy()

    def _photographs(self, split: str) -> photo_files.Photographs | None:
        return photo_files.load(split) if self._has_photographs else None

    def painter_of(self, subject: Identity) -> Painter:
        """What draws `subject`: photographs in its textures are those of its split."""
        split = SPLITS[subject.number % 2]
        if split not in self._painters:
            resolution = max(128, 16 * round(min(self.height, self.width) / 12))
            self._painters[split] = Painter(self._photographs(split), resolution)
        return self._painters[split]


def _floors(rng: np.random.Generator, motions: tuple[str, ...], ground: float | None) -> list[tuple[float, float]]:
    """For each subject, the range of y that its feet may stand in: below the horizon where there is one.

    Two subjects of whom one crosses the frame stand at different depths, so that neither hides the other for long.
    """
    back = 0.62 if ground is None else min(max(ground + 0.08, 0.6), 0.88)
    if len(motions) == 1 or not {"left", "right"} & set(motions):
        return [(back if ground is not None else 0.72, 0.97)] * len(motions)
    floors = [(0.46 if ground is None else back - 0.06, 0.52 if ground is None else back), (0.93, 0.99)]
    return floors if chance(rng, 0.5) else floors[::-1]


def _extent(sprite: Sprite, angle: float) -> tuple[float, float]:
    """Width and height of a turned sprite whose longer side is 1."""
    x0, y0, x1, y1 = sprite.box
    w, h = (x1 - x0), (y1 - y0)
    longer = max(w, h, 1e-3)
    cosine, sine = abs(float(np.cos(angle))), abs(float(np.sin(angle)))
    return (w * cosine + h * sine) / longer, (w * sine + h * cosine) / longer


def _checked(field: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{field} is {value!r}; it must be one of {', '.join(allowed)}.")
    return value
