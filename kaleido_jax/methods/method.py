"""What a method is: one file that says how a sample becomes tokens, and what is made of the network's answer.

A method is a frozen dataclass, its fields the options that its paper leaves open or varies. Training and sampling know
no method by name: they call the functions below with one.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeAlias

import jax.numpy as jnp

from kaleido_jax import masks, rope
from kaleido_jax.diffusion import flow, guidance
from kaleido_jax.errors import UsageError
from kaleido_jax.layout import Contents, Grid, TokenLayout, patchify, unpatchify
from kaleido_jax.names import lookup
from kaleido_jax.packing import packed
from kaleido_jax.table import TokenTable
from kaleido_jax.tree import pytree
from kaleido_jax.typing import AnyArray, Array, Float, Int

# network(tokens, table, text, *, layout, image) -> velocity of the target segments' tokens; image is left out if None.
Network: TypeAlias = Callable[..., Array]

# Latents [b, f, h, w, z] as pixels, not clipped.
Decode: TypeAlias = Callable[[Array], Array]

# What stands for "no reference" has the middle of the range of a byte in every pixel: zero in [-1, 1], within half a
# step. (A paper's "zero pixels" could also mean black.)
EMPTY_BYTE = 128


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class Condition:
    """What the velocity depends on beside x and t, one row a sample.

    text: the text encoder's output, all prompts of a sample one after another. text_lengths: the real tokens of each.
    references: clean latents of each slot. reference_frames: how many latent frames of a slot are there, counted from
    its start; 0 = no reference. subjects: which subject each one shows. image: tokens of an image encoder (CLIP), or
    None.
    """

    text: Float[Array, "b m d"]
    text_lengths: Int[AnyArray, "b texts"]
    references: Sequence[Float[Array, "b _ _ _ z"]]
    reference_frames: Int[AnyArray, "b r"]
    subjects: Int[AnyArray, "b r"]
    image: Float[Array, "b p e"] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method(abc.ABC):
    """Base of the methods.

    name: as it is chosen by. data: what it is trained on: a video with "pictures" of its subjects, a "group" of clips
    and pictures of one identity, or the shots of a "scene". pictures: what a user's pictures show, "subjects" of the
    video or "frames" of it. most_references: that the paper knows.
    scheme: how tokens are placed, a name of `rope.SCHEMES`.
    """

    name: ClassVar[str]
    data: ClassVar[Literal["pictures", "group", "scene"]] = "pictures"
    pictures: ClassVar[Literal["subjects", "frames"]] = "subjects"
    most_references: ClassVar[int | None] = None

    scheme: str

    def __post_init__(self) -> None:
        lookup(rope.SCHEMES, self.scheme, "position scheme")

    @property
    def pinned(self) -> bool:
        """Whether references are the same at every step: of a fixed time, and blind to the video."""
        return False

    @property
    def blind_to_text(self) -> bool:
        """Whether references read no prompt, so that one that is pinned is the same for all of them."""
        return False

    @property
    def needs_mmdit(self) -> bool:
        """Whether the network must read prompts in its sequence, as `models.mmdit` does and Wan does not."""
        return False

    @property
    def reconstructs(self) -> bool:
        """Whether the network paints the references again, see `contextanyone.reconstruct`."""
        return False

    @property
    def decodes(self) -> bool:
        """Whether a part of the loss, `decoded_loss`, is on decoded pixels."""
        return False

    def decoded_loss(
        self, out: Float[Array, "b n p"], condition: Condition, *, layout: TokenLayout, patch: Grid, decode: Decode
    ) -> Float[Array, "b"]:
        """What `decodes` adds to the loss of each sample, of the network's answer for the target segments."""
        raise NotImplementedError(f"{self.name} has no loss on pixels")

    @abc.abstractmethod
    def layout(self, video: Grid, references: Sequence[Grid], *, texts: Sequence[int]) -> TokenLayout:
        """The bucket for a video (all its shots along the frames), slots for references, and prompts of these lengths.

        Raises UsageError for what this method has no place for.
        """

    @abc.abstractmethod
    def table(self, layout: TokenLayout, times: Float[AnyArray, "b draws"], condition: Condition) -> TokenTable:
        """Positions, times, loss weights and masks of a batch. times: as many as `draws` says."""

    def draws(self, layout: TokenLayout) -> int:
        """How many times of the flow a sample draws independently."""
        return 1

    def levels(self, layout: TokenLayout, times: Float[AnyArray, "b draws"]) -> Float[Array, "b f"]:
        """How noisy each latent frame of the video is."""
        frames = sum(segment.grid[0] for segment in layout.segments if segment.kind == "video")
        return jnp.broadcast_to(jnp.asarray(times, jnp.float32), (times.shape[0], frames))

    def tokens(self, video: Float[Array, "b f h w z"], condition: Condition, patch: Grid) -> Float[Array, "b n p"]:
        """Patches of all visual segments in the layout's order: by default the clean references, then the video."""
        return jnp.concatenate([patchify(piece, patch) for piece in (*condition.references, video)], axis=1)

    def given(self, video: Float[Array, "b f h w z"], condition: Condition) -> Float[Array, "b f h w z"]:
        """The noisy video, those of its latent frames that the condition gives put in their places: by default none.

        The condition may have more rows than the video, all alike in this.
        """
        return video

    def given_clip(self, pictures: Sequence[Float[Array, "b h w c"]], frames: int) -> Float[Array, "b _ h w c"]:
        """What is encoded of pictures in [-1, 1] that are frames of a video of so many, if `pictures` says "frames"."""
        raise NotImplementedError(f"{self.name} has no pictures that are frames of the video")

    def targets(self, velocity: Float[Array, "b f h w z"], condition: Condition, patch: Grid) -> Float[Array, "b n p"]:
        """What the network should answer for its target segments, given the video's velocity."""
        return patchify(velocity, patch)

    def image(self, condition: Condition, patch: Grid) -> Float[Array, "b p e"] | None:
        """Tokens for the network's image branch."""
        return condition.image

    def in_channels(self, channels: int, slots: int) -> int:
        """Latent channels that the network reads, for latents of so many channels and so many reference slots."""
        return channels

    def sampling_hook(self, network: Any, layout: TokenLayout, batch: int) -> dict[str, Any]:
        """What else the network is called with in sampling, such as another attention. Nothing by default."""
        return {}

    def guidance(self, scale: float) -> guidance.Guidance:
        """How branches are combined in sampling: by default text alone is guided, with the references in both."""
        return guidance.text_guidance(scale)

    def prompts(self, prompt: str) -> tuple[str, ...]:
        """The prompts that a user's text holds, in the order of `layout`'s texts: by default it is one."""
        return (prompt,)

    def check_references(self, count: int) -> None:
        """Raises UsageError for a number of references that the method cannot use."""
        if self.most_references is not None and not 1 <= count <= self.most_references:
            raise UsageError(f"There are {count} references; {self.name} takes 1 to {self.most_references}.")


def losses(
    method: Method,
    network: Network,
    clean: Float[Array, "b f h w z"],
    noise: Float[Array, "b f h w z"],
    times: Float[Array, "b draws"],
    condition: Condition,
    *,
    layout: TokenLayout,
    patch: Grid,
    emphasis: Float[Array, "b n"] | None = None,
    decode: Decode | None = None,
) -> Float[Array, "b"]:
    """The flow-matching loss of each sample: the sum of its `loss_parts`, of which the arguments are."""
    fixed = {"layout": layout, "patch": patch, "emphasis": emphasis, "decode": decode}
    return total_of(loss_parts(method, network, clean, noise, times, condition, **fixed))


def total_of(parts: Mapping[str, Float[Array, "b"]]) -> Float[Array, "b"]:
    """The sum of what each kind of segment adds to the loss."""
    first, *others = parts.values()
    return sum(others, first)


def loss_parts(
    method: Method,
    network: Network,
    clean: Float[Array, "b f h w z"],
    noise: Float[Array, "b f h w z"],
    times: Float[Array, "b draws"],
    condition: Condition,
    *,
    layout: TokenLayout,
    patch: Grid,
    emphasis: Float[Array, "b n"] | None = None,
    decode: Decode | None = None,
) -> dict[str, Float[Array, "b"]]:
    """What each kind of segment, and decoded "pixels", add to the flow-matching loss of each sample.

    A segment's loss is the mean over its own tokens that are present; the method's weight is applied after that.

    Args:
      clean, noise: of the video. times: of the flow, `method.draws(layout)` of them.
      emphasis: how much each of the video's tokens counts in its mean; None: all alike.
      decode: for a method of which a part of the loss is on pixels.
    """
    draw = Draw(clean=clean, noise=noise, times=times, condition=condition, layout=layout, emphasis=emphasis)
    return packed_loss_parts(method, network, [draw], patch=patch, decode=decode)[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draw:
    """Samples of one layout with what was drawn for them: arguments of `loss_parts`."""

    clean: Float[Array, "b f h w z"]
    noise: Float[Array, "b f h w z"]
    times: Float[Array, "b draws"]
    condition: Condition
    layout: TokenLayout
    emphasis: Float[Array, "b n"] | None = None


def packed_loss_parts(
    method: Method, network: Network, draws: Sequence[Draw], *, patch: Grid, decode: Decode | None = None
) -> list[dict[str, Float[Array, "b"]]]:
    """`loss_parts` of each of several draws, whose samples lie in the same sequences: row i has sample i of each.

    A sample reads its own tokens and prompt alone, so its loss is what it is by itself.

    Raises:
      UsageError: there are several, and the method has an image branch, which all of a sequence reads.
    """
    tokens, tables, images = [], [], []
    for one in draws:
        level = method.levels(one.layout, one.times)[:, :, None, None, None]
        tables.append(method.table(one.layout, one.times, one.condition))
        tokens.append(method.tokens(flow.add_noise(one.clean, one.noise, level), one.condition, patch))
        images += [image for image in (method.image(one.condition, patch),) if image is not None]
    if images and len(draws) > 1:
        raise UsageError(
            f"data.packed is True, but {method.name}'s image branch is read by a whole sequence; train without it"
        )
    layout, table = packed([one.layout for one in draws], tables)
    join = lambda pieces: pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis=1)
    given = {"image": images[0]} if images else {}
    text = join([one.condition.text for one in draws])
    out = network(join(tokens), table, text, layout=layout, **given).astype(jnp.float32)
    found, start = [], 0
    for one, own in zip(draws, tables):
        size = sum(segment.tokens for segment in one.layout.select("visual") if segment.target)
        found.append(_loss_parts_of(method, out[:, start : start + size], own, one, patch=patch, decode=decode))
        start += size
    return found


def _loss_parts_of(
    method: Method, out: Float[Array, "b n p"], table: TokenTable, draw: Draw, *, patch: Grid, decode: Decode | None
) -> dict[str, Float[Array, "b"]]:
    """`loss_parts`, given the network's answer for the target segments."""
    layout, emphasis = draw.layout, draw.emphasis
    target = method.targets(flow.velocity_target(draw.clean, draw.noise), draw.condition, patch)
    counted = [i for i, segment in enumerate(layout.select("visual")) if segment.target]
    places = [layout.indices("visual")[i] for i in counted]
    if emphasis is not None:  # of the video, which comes last
        others = target.shape[1] - emphasis.shape[1]
        emphasis = jnp.pad(emphasis, ((0, 0), (others, 0)), constant_values=1.0)
    own = flow.segment_loss(
        out,
        target,
        tokens=[layout.segments[i].tokens for i in places],
        lengths=jnp.stack([table.lengths[:, i] for i in places], axis=1),
        weights=jnp.stack([table.loss_weights[:, i] for i in counted], axis=1),
        emphasis=emphasis,
    )
    parts: dict[str, Array] = {}
    for column, place in enumerate(places):
        kind, loss = layout.segments[place].kind, own[:, column]
        parts[kind] = parts[kind] + loss if kind in parts else loss
    if method.decodes:
        assert decode is not None, "this method's loss is on pixels: give decode"
        parts["pixels"] = method.decoded_loss(out, draw.condition, layout=layout, patch=patch, decode=decode)
    return parts


def velocity(
    method: Method,
    network: Network,
    x: Float[Array, "b f h w z"],
    times: Float[Array, "b draws"],
    condition: Condition,
    *,
    layout: TokenLayout,
    patch: Grid,
) -> Float[Array, "b f h w z"]:
    """The velocity of the video x at these times."""
    table = method.table(layout, times, condition)
    tokens = method.tokens(x, condition, patch)
    image = method.image(condition, patch)
    given = {} if image is None else {"image": image}
    given |= method.sampling_hook(network, layout, x.shape[0])
    out = network(tokens, table, condition.text, layout=layout, **given)
    grid = tuple(int(size) // step for size, step in zip(x.shape[1:4], patch))
    return unpatchify(out[:, out.shape[1] - grid[0] * grid[1] * grid[2] :], grid, patch)


def contents(
    layout: TokenLayout,
    *,
    reference_frames: Int[AnyArray, "b r"],
    text_lengths: Int[AnyArray, "b texts"],
    subjects: Int[AnyArray, "b r"] | None = None,
) -> Contents:
    """What a batch holds of a layout, from what it has of each reference slot and of each prompt.

    A shot is there where its prompt is: the prompt of a shot is the text segment of the same `shot`.
    """
    kinds = [segment.kind for segment in layout.segments]
    shots = [segment.shot for segment in layout.segments if segment.kind == "text"]
    frames, texts = jnp.asarray(reference_frames, jnp.int32), jnp.asarray(text_lengths, jnp.int32)
    several = len(shots) > 1
    columns = []
    for i, segment in enumerate(layout.segments):
        room = jnp.full((texts.shape[0],), segment.tokens, jnp.int32)
        if segment.kind == "reference":
            columns.append(frames[:, kinds[:i].count("reference")] * (segment.grid[1] * segment.grid[2]))
        elif segment.kind == "text":
            columns.append(texts[:, kinds[:i].count("text")])
        elif several and segment.shot in shots:
            columns.append(jnp.where(texts[:, shots.index(segment.shot)] > 0, room, 0))
        else:
            columns.append(room)
    shown = None
    if subjects is not None and "reference" in kinds:
        numbers = jnp.asarray(subjects, jnp.int32)
        zero = jnp.zeros_like(texts[:, 0])
        shown = jnp.stack(
            [numbers[:, kinds[:i].count("reference")] if kind == "reference" else zero for i, kind in enumerate(kinds)],
            axis=1,
        )
    return layout.contents(lengths=jnp.stack(columns, axis=1), subjects=shown)


def make_table(
    layout: TokenLayout,
    present: Contents,
    *,
    times: Float[AnyArray, "_ s_visual"],
    scheme: str | rope.Scheme,
    rules: Sequence[str] = ("bidirectional",),
    readers: masks.Rule | None = None,
    weights: Float[AnyArray, "_ s_visual"] | None = None,
) -> TokenTable:
    """The table of a batch whose tokens are placed by `scheme` and see each other by `rules`, which go by name.

    times, weights: of each visual segment; the weights are 1 for targets if they are not given. readers: which visual
    token reads which text; None: all do.
    """
    segments = layout.select("visual")
    batch = present.lengths.shape[0]
    if weights is None:
        weights = jnp.asarray([[float(segment.target) for segment in segments]], jnp.float32)
    if isinstance(scheme, str):
        scheme = lookup(rope.SCHEMES, scheme, "position scheme")
    rule = [lookup(masks.RULES, name, "visibility rule") for name in rules]
    text_rule = [] if readers is None else [readers]
    return TokenTable(
        positions=rope.positions(layout, scheme, present),
        lengths=present.lengths,
        subjects=present.subjects,
        timesteps=jnp.broadcast_to(jnp.asarray(times, jnp.float32), (batch, len(segments))),
        loss_weights=jnp.broadcast_to(jnp.asarray(weights, jnp.float32), (batch, len(segments))),
        self_mask=masks.visibility(layout, *rule, contents=present),
        text_mask=masks.visibility(layout, *text_rule, contents=present, queries="visual", keys="text"),
    )


def segment_times(
    layout: TokenLayout, times: Float[AnyArray, "b draws"], *, references: Literal["video", "zero"]
) -> Float[Array, "b s_visual"]:
    """The time of each visual segment: the first of `times` for videos, the same or 0 for all else."""
    moving = [segment.kind == "video" or references == "video" for segment in layout.select("visual")]
    return jnp.asarray(times, jnp.float32)[:, :1] * jnp.asarray([moving], jnp.float32)


def one_text(method: Method, texts: Sequence[int]) -> int:
    """The length of the only prompt. Raises UsageError if there are several."""
    if len(texts) != 1:
        raise UsageError(f"There are {len(texts)} prompts; {method.name} takes one. Scenes of shots are lct's.")
    return texts[0]


def as_options(method: Method) -> tuple[str, ...]:
    """The fields that are not at their defaults as "name=value", `scheme` left out: what `registry.create` reads."""
    given = []
    for field in dataclasses.fields(method):
        value: Any = getattr(method, field.name)
        if field.name != "scheme" and value != field.default:
            given.append(f"{field.name}={value}")
    return tuple(given)
