"""Identity groups of the procedural world: one subject in several clips and pictures (AnyID, section 3.5).

A group has a target video, one to five references of the same identity with other motions, places and poses, and the
ground truth of what the first reference and the target show. The same makes a scene of several shots.
"""

from dataclasses import dataclass, replace

import numpy as np

from kaleido_jax.data.captions import caption
from kaleido_jax.data.drawing import chance, generator, pick, whole
from kaleido_jax.data.lexicon import MOTION_PHRASES, SCENE_PHRASES
from kaleido_jax.data.motions import MOTIONS
from kaleido_jax.data.scenes import SCENES
from kaleido_jax.data.world import SPLITS, Story, World

MAX_REFERENCES = 5


@dataclass(frozen=True, kw_only=True)
class Shown:
    """The ground truth of one clip or picture: names of MOTIONS and SCENES."""

    motion: str
    scene: str


@dataclass(frozen=True, kw_only=True)
class Group:
    """A target and references of one identity, the primary reference first.

    video: uint8 [frames, height, width, 3]; masks: uint8 [frames, height, width], not 0 where the subject is seen.
    references: uint8 [f, height, width, 3], one frame a picture. shown: of the first reference. target: of the video.
    """

    video: np.ndarray
    masks: np.ndarray
    references: tuple[np.ndarray, ...]
    shown: Shown
    target: Shown


class TruthDescriber:
    """Says of `Shown` what is true: the describer of the miniature's element list."""

    def describe(self, shown: Shown, elements: dict[str, str]) -> dict[str, str]:
        third, _, rest = MOTION_PHRASES[shown.motion][0].partition("|")
        words = {
            "action": f"{third.split()[2]} {rest}".strip(),
            "background": SCENE_PHRASES[shown.scene][0],
        }
        return {name: words[name] for name in elements}

    def differences(self, reference: Shown, target: Shown, elements: dict[str, str]) -> dict[str, str]:
        """What truly changed, whatever the words for it have in common."""
        same = {"action": reference.motion == target.motion, "background": reference.scene == target.scene}
        return {name: text for name, text in self.describe(target, elements).items() if not same[name]}


def draw_group(world: World, seed: int, split: str = "train", *, most: int = MAX_REFERENCES, clip: int = 9) -> Group:
    """The group of (seed, split): 1 to `most` references, of which about half are clips of `clip` frames."""
    rng = generator(0x6E0, world.seed, seed, SPLITS.index(split))
    story = _alone(world.story(seed, split))
    target = world.render(story)
    count = whole(rng, 1, most)
    references, shown = [], None
    for _ in range(count):
        is_clip = clip > 1 and chance(rng, 0.5)
        other = _elsewhere(rng, story)
        number = whole(rng, 0, 2**52)
        if is_clip:
            pixels = world.render(other).video[:clip]
            truth = Shown(motion=other.motions[0], scene=other.scene)
        else:
            # The first one is cut out, because only then its ground truth says all that it shows.
            style = "white" if shown is None else None
            pixels = world.picture(story.identities[0], number, split=split, style=style)[None]
            truth = Shown(motion="still", scene="plain")
        references.append(pixels)
        shown = shown or truth
    assert shown is not None
    seen = Shown(motion=story.motions[0], scene=story.scene)
    return Group(video=target.video, masks=target.masks, references=tuple(references), shown=shown, target=seen)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Shots of one identity. videos: uint8 [shots, f, h, w, 3]; masks: uint8 [shots, f, h, w]; prompts: one a shot.

    prompt: of the whole scene.
    """

    videos: np.ndarray
    masks: np.ndarray
    prompts: tuple[str, ...]
    prompt: str


def draw_scene(world: World, seed: int, split: str = "train", *, shots: int = 3) -> Scene:
    """The scene of (seed, split): one subject, each shot with a motion and, about half the time, a place of its own."""
    rng = generator(0x5CE, world.seed, seed, SPLITS.index(split))
    first = _alone(world.story(seed, split))
    stories = [first]
    for _ in range(shots - 1):
        other = _elsewhere(rng, first)
        same_place = chance(rng, 0.5)
        stories.append(replace(other, scene=first.scene, scene_seed=first.scene_seed) if same_place else other)
    drawn = [world.render(story) for story in stories]
    looks = (world.looks(first.identities[0]),)
    texts = tuple(caption(rng, looks, story.motions, story.scene, False) for story in stories)
    return Scene(
        videos=np.stack([sample.video for sample in drawn]),
        masks=np.stack([sample.masks for sample in drawn]),
        prompts=texts,
        prompt=f"a video of the {looks[0].colour} {looks[0].noun}",
    )


def _alone(story: Story) -> Story:
    """The story with its first subject alone and no references."""
    return replace(story, identities=story.identities[:1], motions=story.motions[:1], pictures=(0,), scene_given=False)


def _elsewhere(rng: np.random.Generator, story: Story) -> Story:
    """The same subject with another path, motion and place."""
    heldout = SPLITS.index(story.split)
    return replace(
        story,
        seed=whole(rng, 0, 2**52),
        motions=(pick(rng, MOTIONS),),
        scene=pick(rng, tuple(SCENES)),
        scene_seed=2 * whole(rng, 0, 2**51) + heldout,
    )
