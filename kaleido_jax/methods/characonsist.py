"""CharaConsist (ICCV 2025, arXiv 2507.11533): the same character in many pictures, without training, on FLUX.1.

A group is an identity picture and frames. At every step of the sampler all of them are denoised as one batch, and in
each layer the frames read the identity picture's keys and values of that very layer: nothing is cached, where the
released code keeps those of all steps (76 GB for 1024 x 1024 pixels). The identity picture reads nothing of the frames.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from kaleido_jax.config import override
from kaleido_jax.diffusion import samplers
from kaleido_jax.errors import UsageError
from kaleido_jax.layout import TokenLayout, patchify, unpatchify
from kaleido_jax.methods import text_to_image
from kaleido_jax.methods.characonsist_attention import PointTracking, Tracking, nothing_tracked
from kaleido_jax.methods.characonsist_matching import characters_shown, matches, tracked_characters
from kaleido_jax.models.flux import FluxConfig, FluxTransformer
from kaleido_jax.names import lookup
from kaleido_jax.tree import pytree
from kaleido_jax.typing import AnyArray, Array, Bool, Float, Int

# What a pass is for: the identity picture's own mask, a look ahead at the frames, or the pictures themselves.
Phase = Literal["identity", "ahead", "pictures"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CharaConsist:
    """Everything that the method leaves to choose. `released()` is the released code's choice, `paper()` the paper's.

    Steps are counted from 0 in a run of `of_steps`; in a run of another length they are where the same share of it
    is done.

    double_blocks: whether FLUX's double blocks share and are measured, as the single blocks are.
    foreground_every, background_every: every how many of the blocks share foreground and background, from the first.
    share_from, share_until: steps at which frames read the identity picture (the second is the first without).
    match_at: the step whose attention says which points are the same; frames are denoised up to it once beforehand.
        None: at every step, from a pass of that step in which nothing is shared.
    threshold: a pair of points counts above this cosine; -1 takes every pair.
    merge_weight: of the adaptive token merge; 0 leaves it out. merge_from, merge_hold, merge_until: the steps at which
        it begins, begins to fall as half a cosine, and is gone.
    erode, dilate: sides of the squares by which masks are cleaned, odd; 1 does nothing.
    keep_background: whether frames keep the identity picture's background, or have their own.
    inversion_guidance: the guidance scale at which a given identity picture is inverted. Neither paper nor code invert;
        1 is where the flow is nearest to what the picture's noise would say.
    """

    double_blocks: bool = False
    foreground_every: int = 2
    background_every: int = 1
    of_steps: int = 50
    share_from: int = 1
    share_until: int = 41
    match_at: int | None = 10
    threshold: float = 0.5
    merge_weight: float = 0.8
    merge_from: int = 1
    merge_hold: int = 11
    merge_until: int = 31
    erode: int = 3
    dilate: int = 5
    keep_background: bool = False
    inversion_guidance: float = 1.0

    def __post_init__(self):
        for name in ("foreground_every", "background_every", "of_steps"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        for name in ("erode", "dilate"):
            if getattr(self, name) < 1 or getattr(self, name) % 2 == 0:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be odd, such as 3.")
        for names in (("share_from", "share_until"), ("merge_from", "merge_hold", "merge_until")):
            steps = [getattr(self, name) for name in names]
            if steps != sorted(steps) or steps[0] < 0 or steps[-1] > self.of_steps:
                raise UsageError(
                    f"{', '.join(names)} are {steps}; they must rise, from 0 to of_steps={self.of_steps} at most."
                )
        if self.match_at is not None and not 0 <= self.match_at < self.of_steps:
            raise UsageError(f"match_at is {self.match_at}; it must be from 0 to {self.of_steps - 1}, or None.")
        if not -1 <= self.threshold <= 1:
            raise UsageError(f"threshold is {self.threshold}; it must be a cosine, from -1 to 1.")
        if not 0 <= self.merge_weight <= 1:
            raise UsageError(f"merge_weight is {self.merge_weight}; it must be from 0 to 1.")

    @classmethod
    def released(cls, **changes: Any) -> "CharaConsist":
        """The constants of the released code (github.com/Murray-Wang/CharaConsist, July 2025).

        Its 38 single blocks, every second one for the foreground; matching at step 10 of 50, sharing at 1 to 40, merge
        0.8 to step 10 and down to 0 at 31; cosine 0.5; erosion by 3 x 3, dilation by 5 x 5.
        """
        return cls(**changes)

    @classmethod
    def paper(cls, **changes: Any) -> "CharaConsist":
        """The method as the paper describes it: all layers, every step, points of the same step.

        Open in the paper, and what stands here: the merge falls from the released 0.8 over the whole run; no threshold
        and no cleaning of masks, which it does not mention.
        """
        described = {
            "double_blocks": True, "foreground_every": 1, "share_from": 0, "share_until": 50, "match_at": None,
            "threshold": -1.0, "merge_from": 0, "merge_hold": 0, "merge_until": 50, "erode": 1, "dilate": 1,
        }  # fmt: skip
        return cls(**described | changes)

    def step_of(self, step: int, steps: int) -> int:
        """Where a step of the run of `of_steps` is in one of `steps`."""
        return round(step * steps / self.of_steps)

    def merge_at(self, step: int, steps: int) -> float:
        """The weight of the adaptive token merge at a step."""
        start, hold, end = (self.step_of(at, steps) for at in (self.merge_from, self.merge_hold, self.merge_until))
        if not start <= step < end:
            return 0.0
        if step < hold:
            return self.merge_weight
        return self.merge_weight * 0.5 * (1.0 + math.cos(math.pi * (step - hold) / (end - hold)))

    def shares_at(self, step: int, steps: int) -> bool:
        """Whether frames read the identity picture at a step."""
        return self.step_of(self.share_from, steps) <= step < self.step_of(self.share_until, steps)

    @property
    def kinds(self) -> tuple[tuple[bool, bool], ...]:
        """What a layer can share, as (foreground, background); each is a branch of the compiled step."""
        background = (False, True) if self.keep_background else (False,)
        return tuple((f, b) for f in (False, True) for b in background)

    def layer_kinds(self, layers: int, *, foreground: bool, background: bool) -> np.ndarray:
        """For each layer the index of what it shares in `kinds`, int32, in a pass that shares these."""
        at = np.arange(layers)
        shares = [
            foreground & (at % self.foreground_every == 0),
            background & self.keep_background & (at % self.background_every == 0),
        ]
        return np.array([self.kinds.index((bool(f), bool(b))) for f, b in zip(*shares)], np.int32)


def create(setting: str | None = None, options: Sequence[str] = ()) -> CharaConsist:
    """A named setting ("released" if not given) with "name=value" for fields of `CharaConsist`.

    Raises:
      UsageError: for a setting, a field or a value that does not exist; says the nearest name.
    """
    known = {"released": CharaConsist.released, "paper": CharaConsist.paper}
    return override(lookup(known, setting or "released", "setting of characonsist")(), options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pass:
    """One run through the network; all but `phase` and `advances` reaches the compiled step as data.

    foreground, background: what frames share. merge: the weight of the token merge. masks, identity, points: whether
    the frames' masks, the identity picture's mask and the points are measured. advances: whether pictures move on.
    """

    phase: Phase
    step: int
    foreground: bool = False
    background: bool = False
    merge: float = 0.0
    masks: bool = False
    identity: bool = False
    points: bool = False
    advances: bool = True


def passes(method: CharaConsist, steps: int) -> Iterator[Pass]:
    """All passes of a group in their order. Each phase starts from the noise.

    With `match_at`: the identity picture up to that step where the background is kept (frames read it from the first
    step on), all pictures up to it without sharing the foreground, then all from the start. Masks of frames are
    measured up to that step, and the points again at it, as the released code does.
    """
    if method.match_at is None:
        for step in range(steps):
            shares = method.shares_at(step, steps)
            if shares:
                yield Pass(phase="pictures", step=step, masks=True, identity=True, points=True, advances=False)
            yield Pass(
                phase="pictures",
                step=step,
                foreground=shares,
                background=shares and method.keep_background,
                merge=method.merge_at(step, steps) if shares else 0.0,
            )
        return
    last = method.step_of(method.match_at, steps)
    if method.keep_background:
        for step in range(last + 1):
            yield Pass(phase="identity", step=step, identity=step == last)
    for step in range(last + 1):
        at_last = step == last
        kept = method.keep_background and method.shares_at(step, steps)
        first = at_last and not method.keep_background
        yield Pass(phase="ahead", step=step, background=kept, masks=True, identity=first, points=at_last)
    for step in range(steps):
        shares = method.shares_at(step, steps)
        yield Pass(
            phase="pictures",
            step=step,
            foreground=shares,
            background=shares and method.keep_background,
            merge=method.merge_at(step, steps) if shares else 0.0,
            masks=step <= last,
            points=step == last,
        )


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class Switches:
    """A `Pass` as data. double, single: of each layer, what it shares (an index into `CharaConsist.kinds`)."""

    double: Int[AnyArray, "l"] | None
    single: Int[AnyArray, "s"]
    merge: Float[AnyArray, ""]
    masks: Bool[AnyArray, ""]
    identity: Bool[AnyArray, ""]
    points: Bool[AnyArray, ""]


def switches(method: CharaConsist, at: Pass, config: FluxConfig) -> Switches:
    """What the compiled step is told of a pass."""
    kinds = lambda layers: method.layer_kinds(layers, foreground=at.foreground, background=at.background)
    return Switches(
        double=kinds(config.double_layers) if method.double_blocks else None,
        single=kinds(config.single_layers),
        merge=np.array(at.merge, np.float32),
        masks=np.array(at.masks),
        identity=np.array(at.identity),
        points=np.array(at.points),
    )


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class Texts:
    """What the network reads of the prompts of a batch, the identity picture's first.

    words: what each of T5's tokens says: 0 the background, 1, 2, ... a character, above that what they do, -1 nothing.
    """

    text: Float[AnyArray, "b m d"]
    pooled: Float[AnyArray, "b e"]
    words: Int[AnyArray, "b m"]


def denoise(
    method: CharaConsist,
    transformer: FluxTransformer,
    x: Float[Array, "b 1 h w z"],
    row: samplers.Steps,
    texts: Texts,
    guidance: Float[Array, ""],
    tracking: Tracking,
    at: Switches,
    *,
    layout: TokenLayout,
    characters: int,
) -> tuple[Float[Array, "b 1 h w z"], Tracking]:
    """One pass: latents one step further, and what is known of the pictures after it.

    x: latents, the identity picture's first; it may be alone. layout: of one picture, `text_to_image.layout`.
    """
    config, batch = transformer.config, x.shape[0]
    tokens = layout.tokens("visual")
    grid = next(segment.grid for segment in layout.segments if segment.target)
    scores = jax.new_ref(jnp.zeros((batch, tokens, 2 + characters), jnp.float32))
    similarity = jax.new_ref(jnp.zeros((batch - 1, tokens, tokens), jnp.float32))
    attend = PointTracking(
        kinds=method.kinds,
        characters=characters,
        tracking=tracking,
        merge=at.merge if method.merge_weight else None,
        words=texts.words,
        measure_words=at.masks | at.identity,
        measure_points=at.points,
        scores=scores,
        similarity=similarity,
    )
    velocity, _ = transformer(
        patchify(x, config.patch),
        text_to_image.table(layout, jnp.broadcast_to(row.time, (batch,))),
        texts.text,
        texts.pooled,
        layout=layout,
        guidance=jnp.broadcast_to(guidance, (batch,)) if config.guidance else None,
        attend=attend,
        state=(at.double, at.single),
        remat=False,  # nothing is differentiated, and sums in place cannot be made again
    )
    x = jnp.asarray(samplers.advance(samplers.start(x), unpatchify(velocity, grid, config.patch), row).x)
    layers = config.single_layers + (config.double_layers if method.double_blocks else 0)
    mean = scores[...] / layers
    shown = characters_shown(mean, grid, erode=method.erode, dilate=method.dilate)
    identity = jnp.where(at.identity, shown[0], tracking.identity)
    frames = jnp.where(at.masks, shown[1:], tracking.shown)
    if batch == 1:
        return x, dataclasses.replace(tracking, identity=identity)

    def measured() -> tuple[Array, Array, Array]:
        match, how = matches(similarity[...] / layers)
        return match, how, tracked_characters(match, how, frames, identity, method.threshold)

    kept = lambda: (tracking.match, tracking.similarity, tracking.tracked)
    match, how, tracked = jax.lax.cond(at.points, measured, kept)
    return x, Tracking(match=match, similarity=how, tracked=tracked, shown=frames, identity=identity)


# program(latents, row of the sampler, tracking, switches) -> (latents, tracking): `denoise`, compiled.
Program = Callable[[Array, samplers.Steps, Tracking, Switches], tuple[Array, Tracking]]


def draw(
    method: CharaConsist,
    program: Program,
    noise: Float[Array, "one 1 h w z"],
    table: samplers.Steps,
    config: FluxConfig,
    *,
    frames: int,
    path: Float[Array, "k one 1 h w z"] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Float[Array, "b 1 h w z"], Tracking]:
    """Latents of the identity picture and of `frames` frames, all from the same noise, and what is known of them.

    program: one for all passes, and one more for the identity picture alone where the background is kept.
    path: of a given identity picture (`invert`). progress: called before the first pass and after each.
    """
    steps, tokens = len(table.time), math.prod(noise.shape[1:4]) // math.prod(config.patch)
    plan = list(passes(method, steps))
    phase, x, tracking = None, noise, nothing_tracked(frames, tokens)
    report = progress or (lambda done, total: None)
    report(0, len(plan))
    for done, at in enumerate(plan, 1):
        if at.phase != phase:
            phase, rows = at.phase, 1 if at.phase == "identity" else 1 + frames
            x = jnp.broadcast_to(noise, (rows, *noise.shape[1:]))
            tracking = (
                dataclasses.replace(nothing_tracked(rows - 1, tokens), identity=tracking.identity)
                if phase != "pictures"
                else tracking
            )
        if path is not None:
            x = jnp.concatenate([path[at.step], x[1:]])
        row = samplers.Steps(*(np.float32(column[at.step]) for column in table))
        moved, tracking = program(x, row, tracking, switches(method, at, config))
        if at.advances:
            x = moved
        if progress is not None:
            jax.block_until_ready(x)
        report(done, len(plan))
    if path is not None:
        x = jnp.concatenate([path[-1], x[1:]])
    return x, tracking


def invert(
    method: CharaConsist,
    transformer: FluxTransformer,
    x: Float[Array, "one 1 h w z"],
    rows: samplers.Steps,
    texts: Texts,
    *,
    layout: TokenLayout,
) -> Float[Array, "k one 1 h w z"]:
    """The path of a picture to noise: its latents before each step of the sampler, and as they are given at the end.

    Euler's steps are gone backwards: what a step from sigma would have moved is what the network says of that step's
    end, told the time of its start. The identity picture of a group then follows this path instead of being denoised,
    so that it ends as exactly the picture that was given.

    rows: Euler's steps, [k - 1] each.
    """
    config = transformer.config
    grid = next(segment.grid for segment in layout.segments if segment.target)

    def back(x: Array, row: samplers.Steps) -> tuple[Array, Array]:
        velocity = transformer(
            patchify(x, config.patch),
            text_to_image.table(layout, jnp.broadcast_to(row.time, (1,))),
            texts.text[:1],
            texts.pooled[:1],
            layout=layout,
            guidance=jnp.full((1,), method.inversion_guidance, jnp.float32) if config.guidance else None,
            remat=False,
        )
        return x - row.delta * unpatchify(velocity, grid, config.patch).astype(x.dtype), x

    noise, path = jax.lax.scan(back, x, rows, reverse=True)
    return jnp.concatenate([noise[None], path])


def chunks(frames: int, at_once: int) -> Sequence[range]:
    """Frames in parts of equal length, at most `at_once`; the last part may go on with its last frame."""
    count = -(-frames // at_once)
    size = -(-frames // count)
    return [range(start, start + size) for start in range(0, frames, size)]
