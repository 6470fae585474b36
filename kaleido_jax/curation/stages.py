"""The stages of a curation as plain functions, and their order.

`slice_source` makes clips of a source; every other stage takes a clip and gives it back with scores, candidates and
decisions added. A clip or candidate that was dropped passes through the later stages untouched.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np

from kaleido_jax.curation import filters, pictures, rle, slicing
from kaleido_jax.curation.decoding import Decoder, Limits, Undecodable
from kaleido_jax.curation.models.protocol import Found, loaded
from kaleido_jax.curation.records import Candidate, Clip, Drop, Source, stable_id
from kaleido_jax.curation.settings import Curation
from kaleido_jax.curation.taxonomy import default_taxonomy
from kaleido_jax.errors import InputError


@dataclass(frozen=True)
class Stage:
    """A named step from clip to clip."""

    name: str
    function: Callable[[Clip], Clip]

    def __call__(self, clip: Clip) -> Clip:
        return clip if clip.dropped is not None else self.function(clip)


@dataclass(frozen=True, kw_only=True)
class Shots:
    """What slicing found in a source: (shot, begin, end) of every clip, or why there is none."""

    clips: tuple[tuple[int, float, float], ...] = ()
    dropped: Drop | None = None

    def to_json(self) -> str:
        drop = None if self.dropped is None else [self.dropped.stage, self.dropped.reason]
        return json.dumps({"clips": self.clips, "dropped": drop})

    @staticmethod
    def from_json(text: str) -> "Shots":
        values = json.loads(text)
        drop = None if values["dropped"] is None else Drop(stage=values["dropped"][0], reason=values["dropped"][1])
        return Shots(clips=tuple((shot, begin, end) for shot, begin, end in values["clips"]), dropped=drop)


@cache
def decoder(limits: Limits) -> Decoder:
    """One decoder a process."""
    return Decoder(limits)


def find_shots(source: Source, config: Curation) -> Shots:
    """Decodes all of the source as thumbnails and finds its clips."""
    try:
        scan = decoder(config.limits).scan(source.path)
    except Undecodable as reason:
        return Shots(dropped=Drop(stage="decoding", reason=str(reason)))
    if min(scan.height, scan.width) < config.slicing.side:
        return Shots(dropped=Drop(stage="slicing", reason="low resolution"))
    clips = slicing.clips(scan, config.slicing, source.span)
    return Shots(clips=tuple(clips)) if clips else Shots(dropped=Drop(stage="slicing", reason="short"))


def clip_id(source: Source, begin: float, end: float) -> str:
    return stable_id("clip", source.id, f"{begin:.3f}", f"{end:.3f}")


def read_clip(source: Source, shot: tuple[int, float, float], config: Curation) -> Clip:
    """The clip with its frames; dropped where they cannot be decoded or are too few."""
    number, begin, end = shot
    wanted = config.frames
    empty = np.zeros((0, 1, 1, 3), np.uint8)
    clip = Clip(
        id=clip_id(source, begin, end),
        source=source,
        shot=number,
        begin=begin,
        end=end,
        frames=empty,
        caption=source.caption,
    )
    try:
        frames = decoder(config.limits).span(
            source.path,
            begin,
            end,
            frames=wanted.count,
            fps=wanted.fps,
            height=wanted.height,
            width=wanted.width,
            crop=source.crop,
        )
    except Undecodable as reason:
        return clip.drop("decoding", str(reason))
    whole = len(frames) - (len(frames) - 1) % 4
    keys = np.unique(np.linspace(0, whole - 1, min(wanted.keys, whole)).round().astype(int))
    if source.marks:
        place = round((source.marked - begin) * wanted.fps)
        if not 0 <= place < whole:
            return clip.drop("grounding", "marks outside")
        keys = [place]
    return replace(clip, frames=frames[:whole], keys=tuple(int(key) for key in keys))


def caption(clip: Clip, config: Curation) -> Clip:
    """Keeps the source's own caption, or asks the captioner."""
    if clip.caption or config.models.captioner is None:
        return clip if clip.caption or clip.source.marks else clip.drop("caption", "none")
    text = loaded(config.models.captioner).caption(clip.frames).strip()
    return replace(clip, caption=text) if text else clip.drop("caption", "refused")


def ground(clip: Clip, config: Curation) -> Clip:
    """A candidate for every mention that the detector finds, and for every subject that the data set has marked."""
    if clip.source.marks:
        return _marked(clip)
    if config.models.detector is None:
        return clip.drop("grounding", "no detector")
    phrases = [mention.phrase for mention in clip.mentions]
    found = loaded(config.models.detector).detect(clip.frames, clip.keys, phrases)
    candidates, spots = [], []
    for number, (mention, one) in enumerate(zip(clip.mentions, found)):
        candidate = Candidate(
            id=stable_id("subject", clip.id, number), phrase=mention.phrase, category=mention.category
        )
        if one is None:
            candidates.append(candidate.drop("grounding", "not found"))
            continue
        frame = int(np.argmax(one.scores))
        box = one.boxes[frame]
        assert box is not None
        spots.append(one)
        candidates.append(replace(candidate, frame=frame, box=box).scored(detection=float(one.scores[frame])))
    clip = replace(clip, candidates=tuple(candidates))
    if not spots:
        return clip.drop("grounding", "not found")
    if config.models.segmenter is None:
        return clip.drop("segmentation", "no segmenter")
    return segment(clip, config, spots)


def segment(clip: Clip, config: Curation, found: list[Found]) -> Clip:
    """Masks of the kept candidates in all key frames; the box becomes that of the mask."""
    masks = loaded(config.models.segmenter).segment(clip.frames, clip.keys, found)

    def take(one: Candidate, mask: np.ndarray) -> Candidate:
        if not mask[one.frame].any():
            return replace(one, masks=mask).drop("segmentation", "empty mask")
        return replace(one, masks=mask, box=pictures.box_of(mask[one.frame]))

    return clip.with_kept([take(one, mask) for one, mask in zip(clip.kept, masks)])


def _marked(clip: Clip) -> Clip:
    """Candidates from the marks of a data set, which `read_clip` made the only key frame."""
    names = default_taxonomy()
    height, width = clip.frames.shape[1:3]
    candidates = []
    for number, mark in enumerate(clip.source.marks):
        one = Candidate(
            id=stable_id("subject", clip.id, number),
            phrase=mark.phrase,
            category=names.category(mark.phrase) or "",
        ).scored(**{f"given_{name}": float(value) for name, value in mark.scores.items()})
        if not one.category:
            one = one.drop("taxonomy", "no known subject")
        try:
            mask = None if mark.mask is None else pictures.resized_mask(rle.decode(mark.mask), height, width)
        except InputError:
            mask = None
        if mask is None or not mask.any():
            candidates.append(one.drop("segmentation", "no mask") if one.dropped is None else one)
            continue
        candidates.append(replace(one, masks=mask[None], box=pictures.box_of(mask)))
    return replace(clip, candidates=tuple(candidates))


def plate(clip: Clip, config: Curation) -> Clip:
    """The scene without its subjects, from places that are free in some key frame; the rest is painted in.

    Needs a mask for every subject that the caption names, and a camera that stands still or an inpainter; otherwise the
    clip has no plate.
    """
    masks = [one.masks for one in clip.candidates if one.masks is not None]
    if len(masks) < len(clip.mentions) or not masks:
        return clip
    reach = max(2, round(min(clip.frames.shape[1:3]) / 32))
    covered = np.stack([pictures.grown(mask, reach) for mask in np.any(masks, axis=0)])
    keys = clip.key_frames
    free = ~covered
    first = keys[0].astype(np.int16)
    both = free & free[:1]
    change = [
        float(np.abs(frame[where].astype(np.int16) - first[where]).mean())
        for frame, where in zip(keys, both)
        if where.any()
    ]
    if max(change, default=0.0) > 8:  # the camera moves: one frame alone
        keys, free = keys[:1], free[:1]
    hidden = ~free.any(0)
    values = np.where(free[..., None], keys.astype(np.float32), np.float32("nan"))
    values[:, hidden] = 0
    picture = np.nanmedian(values, axis=0).astype(np.uint8)
    clip = clip.scored(plate_hidden=float(hidden.mean()))
    if hidden.any():
        if config.models.inpainter is None:
            return clip
        picture = loaded(config.models.inpainter).paint(picture, hidden)
    return replace(clip, plate=picture)


def stages(config: Curation) -> tuple[Stage, ...]:
    """The stages after slicing, in their order; those whose model is None are left out."""
    names = default_taxonomy()
    limits, models = config.filters, config.models
    found = [
        Stage("caption", partial(caption, config=config)),
        Stage("light", partial(filters.light, settings=limits)),
        Stage("taxonomy", partial(filters.taxonomy, names=names)),
        Stage("grounding", partial(ground, config=config)),
        Stage("detection", partial(filters.detection, settings=limits)),
        Stage("size", partial(filters.size, settings=limits)),
        Stage("overlap", partial(filters.overlap, settings=limits)),
        Stage("subject light", partial(filters.subject_light, settings=limits)),
    ]
    if models.classifier is not None:
        classify = lambda shown, labels: loaded(models.classifier).classify(shown, labels)
        found.append(Stage("category", partial(filters.category, settings=limits, names=names, classify=classify)))
    if models.faces is not None:
        find = lambda shown: loaded(models.faces).find(shown)
        found.append(Stage("faces", partial(filters.faces, settings=config.faces, names=names, find=find)))
    found.append(Stage("plate", partial(plate, config=config)))
    return tuple(found)


def process(source: Source, shot: tuple[int, float, float], config: Curation) -> Clip:
    """One clip through all stages: the plain loop that engines wrap."""
    clip = read_clip(source, shot, config)
    for stage in stages(config):
        clip = stage(clip)
    return clip


def counted(before: Clip, after: Clip, stage: str) -> Iterator[str]:
    """Names of the counters that a stage's step from `before` to `after` raises."""
    if before.dropped is not None:
        return
    if after.dropped is not None:
        yield f"{stage}: clips dropped, {after.dropped.reason}"
    else:
        yield f"{stage}: clips kept"
    earlier = {one.id for one in before.candidates if one.dropped is not None}
    for one in after.candidates:
        if one.dropped is not None and one.id not in earlier:
            yield f"{stage}: subjects dropped, {one.dropped.reason}"
        elif one.dropped is None and stage != "grounding":
            yield f"{stage}: subjects kept"
