"""Long Context Tuning: a scene of several shots as one sequence, each shot with a time of its own (arXiv 2503.10589).

A scene has a global prompt and a prompt for each shot. Every shot draws its own time in training, so a shot of little
noise serves the others as a condition. In sampling all shots are made together, or some are given and kept at a low
noise, or, after causal fine-tuning, one after the other with the keys and values of finished shots kept.

The paper's network reads prompts in its self-attention (`models.mmdit`); the same layout runs on Wan, whose shots read
their prompts by masked cross-attention, so that public weights can be tuned. There prompts still take their room in the
positions, which is what sets shots apart.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np

from kaleido_jax import masks, rope
from kaleido_jax.diffusion import flow, guidance, samplers
from kaleido_jax.errors import UsageError
from kaleido_jax.layout import Contents, Grid, Segment, TokenLayout, patchify, unpatchify
from kaleido_jax.masks import TokenMask
from kaleido_jax.methods.cache import KeyValues, run_part
from kaleido_jax.methods.method import Condition, Method, contents, make_table
from kaleido_jax.table import TokenTable
from kaleido_jax.tree import pytree
from kaleido_jax.typing import AnyArray, Array, Bool, Float

MOST_SHOTS = 9
# How noisy finished shots are as conditions. The paper says "low"; 0.1 keeps what they show and hides their flaws.
HISTORY_NOISE = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class LCT(Method):
    """Long Context Tuning with what its paper leaves open as options.

    scheme: "interleaved" or "interleaved-continuing-time", see `rope.Interleaved`.
    attention: "bidirectional", or "causal" after the second tuning: a shot reads itself and earlier ones.
    global_prompt: "read" by every shot beside its own, or by "dummy" video tokens, an empty frame in front of the shots
        that they read in turn: the paper's way, whose network knows no prompt without a video.
    prompts_in: "cross-attention" for Wan; "sequence" for an MMDiT (`models.mmdit.VideoMMDiT`), whose prompts are tokens
        beside their shots; that takes global_prompt="dummy".
    """

    name: ClassVar[str] = "lct"
    data: ClassVar[Literal["pictures", "group", "scene"]] = "scene"

    scheme: str = "interleaved"
    attention: Literal["bidirectional", "causal"] = "bidirectional"
    global_prompt: Literal["read", "dummy"] = "read"
    prompts_in: Literal["cross-attention", "sequence"] = "cross-attention"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompts_in == "sequence" and self.global_prompt != "dummy":
            raise UsageError(
                "lct's prompts_in is sequence and its global_prompt read; a network that reads prompts in its sequence "
                "knows none without a video, so global_prompt must be dummy."
            )

    @property
    def needs_mmdit(self) -> bool:
        return self.prompts_in == "sequence"

    def prompts(self, prompt: str) -> tuple[str, ...]:
        return scene_prompts(prompt)

    def layout(self, video: Grid, references: Sequence[Grid], *, texts: Sequence[int]) -> TokenLayout:
        """The first of `texts` is the global prompt's length, the others are the shots'; shots are equally long."""
        shots = len(texts) - 1
        check_shots(shots)
        self.check_references(len(references))
        frames, height, width = video
        if frames % shots:
            raise UsageError(f"The video has {frames} latent frames, which {shots} shots do not divide evenly.")
        segments = [Segment(kind="text", grid=(texts[0], 1, 1))]
        if self.global_prompt == "dummy":
            segments.append(Segment(kind="dummy", grid=(1, height, width)))
        for shot in range(1, shots + 1):
            segments.append(Segment(kind="text", grid=(texts[shot], 1, 1), shot=shot))
            segments.append(Segment(kind="video", grid=(frames // shots, height, width), shot=shot))
        return TokenLayout(tuple(segments))

    def check_references(self, count: int) -> None:
        if count:
            raise UsageError(f"There are {count} references, and lct takes none; its shots show what prompts say.")

    def draws(self, layout: TokenLayout) -> int:
        return _shots(layout)

    def levels(self, layout: TokenLayout, times: Float[AnyArray, "b draws"]) -> Float[Array, "b f"]:
        frames = next(segment.grid[0] for segment in layout.segments if segment.kind == "video")
        return jnp.repeat(jnp.asarray(times, jnp.float32), frames, axis=1)

    def table(self, layout: TokenLayout, times: Float[AnyArray, "b draws"], condition: Condition) -> TokenTable:
        """times: of each shot; the dummy is clean. A shot weighs one over the number of shots that there are.

        `condition.reference_frames` says how many latent frames of each shot there are, counted from its start: a
        picture is a shot of one. Without columns, all of them are there.
        """
        present = contents(layout, reference_frames=condition.reference_frames, text_lengths=condition.text_lengths)
        frames = jnp.asarray(condition.reference_frames, jnp.int32)
        if frames.shape[1]:
            columns = np.array([i for i, segment in enumerate(layout.segments) if segment.kind == "video"])
            area = layout.segments[columns[0]].grid[1] * layout.segments[columns[0]].grid[2]
            short = jnp.minimum(present.lengths[:, columns], frames * area)
            lengths = jnp.array(present.lengths).at[:, columns].set(short)
            present = dataclasses.replace(present, lengths=lengths)
        is_video = np.array([segment.kind == "video" for segment in layout.select("visual")])
        shown = jnp.asarray(times, jnp.float32)
        there = (present.lengths[:, np.array(layout.indices("visual"))] > 0) & is_video[None]
        counted = jnp.maximum(there.sum(axis=1, keepdims=True), 1).astype(jnp.float32)
        others = len(is_video) - shown.shape[1]  # dummies, in front
        made = make_table(
            layout,
            present,
            times=jnp.pad(shown, ((0, 0), (others, 0))),
            scheme=self.scheme,
            rules=("shot-causal",) if self.attention == "causal" else ("bidirectional",),
            readers=own_and_global if self.global_prompt == "read" else own,
            weights=there.astype(jnp.float32) / counted,
        )
        if self.prompts_in == "cross-attention":
            return made
        rule = masks.RULES["shot-causal" if self.attention == "causal" else "bidirectional"]
        return dataclasses.replace(  # everything of all tokens, in the layout's order
            made,
            positions=rope.positions(layout, rope.SCHEMES[self.scheme], present, stream=None),
            self_mask=masks.visibility(layout, rule, contents=present, queries=None, keys=None),
            text_mask=None,
        )

    def tokens(self, video: Float[Array, "b f h w z"], condition: Condition, patch: Grid) -> Float[Array, "b n p"]:
        shots = patchify(video, patch)
        if self.global_prompt == "read":
            return shots
        height, width = video.shape[2] // patch[1], video.shape[3] // patch[2]
        return jnp.pad(shots, ((0, 0), (height * width, 0), (0, 0)))


def check_shots(shots: int) -> None:
    """Raises UsageError for a number of shots that one context cannot hold; says how the scene would be split."""
    if shots < 1:
        raise UsageError(
            "There is no shot; write the scene's prompt and those of 1 to 9 shots as SCENE || SHOT || SHOT."
        )
    if shots > MOST_SHOTS:
        parts = [min(MOST_SHOTS, shots - start) for start in range(0, shots, MOST_SHOTS)]
        raise UsageError(
            f"There are {shots} shots, and one context holds at most {MOST_SHOTS}; "
            f"make the scene in parts of {' and '.join(map(str, parts))}."
        )


def scene_prompts(text: str) -> tuple[str, ...]:
    """The global prompt and those of the shots out of "SCENE || SHOT || SHOT"; only the first may be empty.

    Raises UsageError if there is no shot, there are too many, or one has no prompt, which it names.
    """
    prompts = tuple(part.strip() for part in text.split("||"))
    check_shots(len(prompts) - 1)
    for number, prompt in enumerate(prompts[1:], 1):
        if not prompt:
            raise UsageError(f"Shot {number} has no prompt; say what it shows.")
    return prompts


def own(layout: TokenLayout, contents: Contents | None = None) -> TokenMask:
    """Each shot reads its own prompt, and the dummy the global one: a bit for each."""
    return _prompts(layout, also=0)


def own_and_global(layout: TokenLayout, contents: Contents | None = None) -> TokenMask:
    """Each shot reads its own prompt and the global one, which is that of shot 0."""
    return _prompts(layout, also=1)


def _prompts(layout: TokenLayout, also: int) -> TokenMask:
    bits = np.array([1 << segment.shot for segment in layout.segments], np.uint32)[layout.segment_ids()]
    return TokenMask(bits | np.uint32(also), bits, width=1 + max(segment.shot for segment in layout.segments))


def _shots(layout: TokenLayout) -> int:
    return sum(segment.kind == "video" for segment in layout.segments)


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class Held:
    """What of a scene is known before it is made.

    given: latents where something is known. noise: where all shots start, and what is mixed into given ones.
    is_given: the shots that are conditions. on_path: the latent frames, of shots that are made, whose clean value is
    known: the first one of a shot that goes on from another one without a cut.
    """

    given: Float[Array, "one f h w z"]
    noise: Float[Array, "one f h w z"]
    is_given: Bool[Array, "shots"]
    on_path: Bool[Array, "f"]

    def follow(self, velocity: Float[Array, "one f h w z"]) -> Float[Array, "one f h w z"]:
        """The velocity with that of the known frames, which leads from their noise to them, in its place."""
        return jnp.where(
            self.on_path[None, :, None, None, None], flow.velocity_target(self.given, self.noise), velocity
        )


def hold(
    x: Float[Array, "b f h w z"],
    time: Float[Array, ""],
    given: Float[Array, "b f h w z"],
    noise: Float[Array, "b f h w z"],
    is_given: Bool[AnyArray, "shots"],
    level: float = HISTORY_NOISE,
) -> tuple[Float[Array, "b f h w z"], Float[Array, "b draws"]]:
    """A scene in which some shots are conditions: those shots of `given`, with a little noise, and the times of all.

    x, time: of the shots that are being made. noise: that is mixed into the given ones, the same at every step.
    """
    shots = is_given.shape[0]
    pick = jnp.repeat(jnp.asarray(is_given), x.shape[1] // shots)[None, :, None, None, None]
    times = jnp.where(jnp.asarray(is_given)[None], level, time)
    mixed = flow.add_noise(given, noise, jnp.full((x.shape[0], 1, 1, 1, 1), level))
    return jnp.where(pick, mixed, x), jnp.broadcast_to(times, (x.shape[0], shots))


def shot_velocity(
    method: LCT,
    network: Any,
    scene: Float[Array, "b f h w z"],
    times: Float[Array, "b draws"],
    condition: Condition,
    kept: KeyValues,
    shot: int,
    *,
    layout: TokenLayout,
    patch: Grid,
) -> tuple[Float[Array, "b fs h w z"], KeyValues]:
    """The velocity of one shot, counted from 0, given what is kept of all before it; and its own keys and values.

    scene, times: of all shots; what stands there of the others is not used.
    """
    first = len(layout.select("visual")) - _shots(layout)
    out, own_state = run_part(
        network,
        method.tokens(scene, condition, patch),
        method.table(layout, times, condition),
        condition.text,
        layout=layout,
        own=(first + shot,),
        seen=tuple(range(first + shot)),
        state=kept,
    )
    return unpatchify(out, layout.select("visual")[first + shot].grid, patch), own_state


def autoregress(
    method: LCT,
    network: Any,
    noise: Float[Array, "one f h w z"],
    condition: Condition,
    *,
    rule: guidance.Guidance,
    steps: samplers.Steps,
    layout: TokenLayout,
    patch: Grid,
    level: float = HISTORY_NOISE,
) -> Float[Array, "one f h w z"]:
    """A scene made shot by shot, each finished shot's keys and values computed once.

    Args:
      network: a WanTransformer. method: with attention="causal".
      noise: where the shots start, and what is mixed into finished ones.
      condition: one row for each branch of `rule`. steps: of a sampler, as `samplers.euler` makes them.
      level: the noise of finished shots as conditions.

    Raises:
      UsageError: the method's attention is not causal, so that finished shots would change with later ones.
    """
    if method.attention != "causal":
        raise UsageError("Shots can be made one by one only with attention=causal; this model's is bidirectional.")
    rows, shots = condition.text_lengths.shape[0], _shots(layout)
    frames = noise.shape[1] // shots
    options = {"layout": layout, "patch": patch}
    repeat = lambda x: jnp.broadcast_to(x, (rows, *x.shape[1:]))
    kept = KeyValues.none(network.config, rows)
    if len(layout.select("visual")) > shots:  # the dummy, which only itself reads
        zero = jnp.zeros((rows, shots), jnp.float32)
        tokens = method.tokens(repeat(noise), condition, patch)
        table = method.table(layout, zero, condition)
        _, kept = run_part(network, tokens, table, condition.text, layout=layout, own=(0,), seen=(), state=kept)
    scene = noise
    for shot in range(shots):
        piece = slice(shot * frames, (shot + 1) * frames)

        def velocity(
            x: Array, time: Array, shot: int = shot, piece: slice = piece, scene: Array = scene, kept: KeyValues = kept
        ) -> Array:
            whole, times = repeat(scene.at[:, piece].set(x)), jnp.full((rows, shots), time, jnp.float32)
            answer, _ = shot_velocity(method, network, whole, times, condition, kept, shot, **options)
            return rule.combine(jnp.split(answer, rows))

        made = samplers.sample_scan(velocity, noise[:, piece], steps)
        scene = scene.at[:, piece].set(made)
        if shot + 1 < shots:
            mixed = scene.at[:, piece].set(
                flow.add_noise(made, noise[:, piece], jnp.full((1, 1, 1, 1, 1), level, jnp.float32))
            )
            times = jnp.full((rows, shots), level, jnp.float32)
            _, own_state = shot_velocity(method, network, repeat(mixed), times, condition, kept, shot, **options)
            kept = kept + own_state
    return scene
