"""AnyID: one to five pictures or clips of an identity, pinned at time zero beside the video (arXiv 2603.25188).

Every reference is fitted and padded to the video's size and encoded alone. Its tokens are clean and say so: their time
is 0, the video's is t > 0, which is how the network tells them apart; the loss is the video's alone. The first
reference is the primary one, against which the differential prompt is written (`methods.differential`). Guidance has
one empty branch, in which the prompt is "" and all references are grey.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal

from kaleido_jax import masks
from kaleido_jax.diffusion import guidance
from kaleido_jax.layout import Grid, Segment, TokenLayout
from kaleido_jax.methods.method import Condition, Method, contents, make_table, one_text, segment_times
from kaleido_jax.table import TokenTable
from kaleido_jax.typing import AnyArray, Float

GUIDANCE = 5.0  # the paper's g
EMPTY_SHARE = 0.1  # of training samples that see the empty condition


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnyID(Method):
    """AnyID with what its paper leaves open as options.

    scheme: where references stand. The paper concatenates them with the video in time and gives no order. By default
        they follow the video ("concat-after"): in the base model a clean frame at time index 0 already means the
        video's first frame, so references in front of it would begin as that; whether one leaks into the first frame
        is measured by `methods.leaks`. "concat-before" is the other order; any of rope.SCHEMES can be chosen.
    rule: who reads whom. The paper's is "bidirectional"; "unidirectional" keeps references from reading the video, so
        that their keys and values can be kept over all steps (`methods.cache`).
    references_read_text: the base model's tokens all do.
    """

    name: ClassVar[str] = "anyid"
    data: ClassVar[Literal["pictures", "group", "scene"]] = "group"
    most_references: ClassVar[int | None] = 5

    scheme: str = "concat-after"
    rule: Literal["bidirectional", "unidirectional", "separate-references"] = "bidirectional"
    references_read_text: bool = True

    @property
    def pinned(self) -> bool:
        return self.rule == "unidirectional"

    @property
    def blind_to_text(self) -> bool:
        return not self.references_read_text

    def layout(self, video: Grid, references: Sequence[Grid], *, texts: Sequence[int]) -> TokenLayout:
        self.check_references(len(references))
        slots = [
            Segment(kind="reference", grid=grid, picture=index, primary=index == 0)
            for index, grid in enumerate(references)
        ]
        text = Segment(kind="text", grid=(one_text(self, texts), 1, 1))
        return TokenLayout((*slots, Segment(kind="video", grid=video), text))

    def table(self, layout: TokenLayout, times: Float[AnyArray, "b draws"], condition: Condition) -> TokenTable:
        present = contents(
            layout,
            reference_frames=condition.reference_frames,
            text_lengths=condition.text_lengths,
            subjects=condition.subjects,
        )
        return make_table(
            layout,
            present,
            times=segment_times(layout, times, references="zero"),
            scheme=self.scheme,
            rules=(self.rule,),
            readers=None if self.references_read_text else masks.readers("video"),
        )

    def guidance(self, scale: float) -> guidance.Guidance:
        return guidance.joint_guidance(scale)
