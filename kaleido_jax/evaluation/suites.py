"""The scores by name, what each one needs, and the suites of the papers.

A score that lacks what it needs is reported as not scored, with the reason; `docs/evaluation.md` gives the sources.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from kaleido_jax.evaluation.evidence import Evidence, NotApplicable, cut_out
from kaleido_jax.evaluation.metrics import leaks, presence, similarity, temporal
from kaleido_jax.models.vision import Preprocessing


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A score of one video.

    function: from the evidence. worst: the value of a video that is missing or broken. higher: whether more is better.
    source: where it is defined. needs: what it must have, for the error of a run that lacks it: "references", "masks",
    "reference backgrounds", "prompt" of a case (with CLIP's text tower) or "a prompt" alone, a role of an encoder,
    "faces:NAME", features of faces, or ELSEWHERE, another program.
    """

    function: Callable[[Evidence], float]
    source: str
    needs: tuple[str, ...] = ()
    worst: float = 0.0
    higher: bool = True


def _s2v_consistency(e: Evidence) -> float:
    return _mean_over_subjects(e, "clip", "max")


def _element(role: str) -> Callable[[Evidence], float]:
    return lambda e: _mean_over_subjects(e, role, "mean")


def _mean_over_subjects(e: Evidence, role: str, over_references: str) -> float:
    references, subjects = e.reference_subjects(role)
    regions, seen = e.regions(role)
    if not seen.any():
        return 0.0
    values = similarity.region_similarity(
        regions, seen, references, subjects, over_references=over_references, undetected=e.tools.undetected
    )
    return float(np.nanmean(values))


def _s2v_decoupling(e: Evidence) -> float:
    return similarity.s2v_decoupling(
        e.backgrounds("clip"), e.reference_backgrounds("clip"), over_references=e.tools.over_references
    )


def _subject_consistency(e: Evidence) -> float:
    return temporal.vbench_consistency(e.frames("vbench-dino", Preprocessing.vbench_dino()))


def _background_consistency(e: Evidence) -> float:
    return temporal.vbench_consistency(e.frames("clip", Preprocessing.vbench_clip()))


def _aesthetic_quality(e: Evidence) -> float:
    if e.tools.head is None:
        raise NotApplicable("there is no head of the aesthetic predictor (--aesthetic-head FILE)")
    weight, bias = e.tools.head
    rows = similarity.unit(e.frames("clip-l14", Preprocessing.vbench_clip()))
    if weight.shape != (1, rows.shape[1]):
        raise NotApplicable(f"the aesthetic head reads {weight.shape[-1]} features, the encoder gives {rows.shape[1]}")
    return float((rows @ weight[0] + bias[0]).mean() / 10)


def _overall_consistency(e: Evidence) -> float:
    if e.tools.viclip is None:
        raise NotApplicable("there is no encoder for the role viclip (--encoder viclip=PATH)")
    if not e.case.prompt:
        raise NotApplicable("the case has no prompt")
    return e.tools.viclip(e.video, e.case.prompt)


def _imaging_quality(e: Evidence) -> float:
    if e.tools.musiq is None:
        raise NotApplicable("there is no network for the role musiq (--encoder musiq=PATH, or --scores FILE)")
    return e.tools.musiq(e.video)


def _motion_smoothness(e: Evidence) -> float:
    if e.tools.amt is None:
        raise NotApplicable("there is no network for the role amt (--encoder amt=PATH, or --scores FILE)")
    reason = e.tools.amt.too_small(*e.video.shape[1:3])
    if reason:
        raise NotApplicable(reason)
    return e.tools.amt(e.video)


def _identity(name: str, source: str, *, shifted: bool) -> Metric:
    """The mean cosine with all reference faces, moved to 0 to 1 if shifted."""

    def score(e: Evidence) -> float:
        frames, seen, references = e.faces(name)
        value = similarity.region_similarity(
            frames[:, None], seen[:, None], references, np.ones(len(references), int),
            over_references="mean", undetected=e.tools.undetected,
        )[0]  # fmt: skip
        return similarity.shifted(float(value)) if shifted else float(value)

    needs = ("references", f"faces:{name}")
    return Metric(function=score, source=source, needs=needs, worst=0.0 if shifted else -1.0)


def _pairwise_identity(e: Evidence) -> float:
    frames, seen, _ = e.faces("arcface")
    return _pairs(frames[seen])


def _pairs(rows: np.ndarray) -> float:
    if len(rows) < 2:
        raise NotApplicable("a set needs at least 2 pictures in which it is seen")
    return similarity.pairwise_similarity(rows)


def _foreground(e: Evidence) -> float:
    regions, seen = e.regions("clip")
    return _pairs(regions[:, 0][seen[:, 0]])


def _leak(score: Callable[[np.ndarray, np.ndarray], float]) -> Callable[[Evidence], float]:
    def run(e: Evidence) -> float:
        pictures = [picture for picture, r in zip(e.references, e.case.references) if r.subject] or e.references
        return score(leaks.correlation_features(list(e.video)), leaks.correlation_features(pictures))

    return run


def _copy_paste(e: Evidence) -> float:
    pictures, seen = e.crops
    if not pictures:
        return 0.0
    rows = np.zeros((*seen.shape, leaks.SIDE * leaks.SIDE * 3))
    rows[seen] = leaks.correlation_features(pictures)
    rates = []
    for subject in range(seen.shape[1]):
        mine = [picture for picture, number in e.subjects if number == subject + 1]
        if mine:  # what is not cut out by a mask is cut to the same square
            mine = [cut_out(picture, np.ones(picture.shape[:2], bool)) for picture in mine]
            both = leaks.correlation_features(mine + [picture[:, ::-1] for picture in mine])
            rates.append(leaks.copy_paste_rate(rows[:, subject], seen[:, subject], both))
    return float(np.mean(rates))


def _presence(field: str) -> Callable[[Evidence], float]:
    def score(e: Evidence) -> float:
        found = presence.presence(*e.instances("clip"), present=e.tools.present)
        return float(getattr(found, field).mean())

    return score


def _elsewhere(name: str, source: str, *, higher: bool = True) -> Metric:
    """A score that only another program can give."""

    def score(e: Evidence) -> float:
        raise NotApplicable(f"{name} needs another program; give its scores (--scores FILE)")

    return Metric(function=score, source=source, needs=(ELSEWHERE,), higher=higher)


ELSEWHERE = "another program"
KALEIDO, VBENCH, ANYID = "Kaleido, 5.2", "VBench (arXiv:2311.17982)", "AnyID, experiments"
CHARACONSIST, LCT, CONTEXT = "CharaConsist, experiments", "LCT, experiments", "ContextAnyone, experiments"
OWN = "kaleido_jax"

METRICS: Mapping[str, Metric] = {
    "s2v_consistency": Metric(function=_s2v_consistency, source=KALEIDO, needs=("references", "masks", "clip")),
    "s2v_decoupling": Metric(
        function=_s2v_decoupling, source=KALEIDO, needs=("references", "reference backgrounds", "masks", "clip")
    ),
    "subject_consistency": Metric(function=_subject_consistency, source=VBENCH, needs=("vbench-dino",)),
    "background_consistency": Metric(function=_background_consistency, source=VBENCH, needs=("clip",)),
    "temporal_flickering": Metric(function=lambda e: temporal.temporal_flickering(e.video), source=VBENCH),
    "motion_smoothness": Metric(function=_motion_smoothness, source=VBENCH + ", AMT-S", needs=("amt",)),
    "motion_smoothness_halfway": Metric(
        function=lambda e: temporal.motion_smoothness(e.video, temporal.halfway), source=OWN
    ),
    "dynamic_degree": _elsewhere("dynamic_degree", VBENCH + ", RAFT"),
    "aesthetic_quality": Metric(function=_aesthetic_quality, source=VBENCH, needs=("clip-l14",)),
    "imaging_quality": Metric(function=_imaging_quality, source=VBENCH + ", MUSIQ", needs=("musiq",)),
    "overall_consistency": Metric(
        function=_overall_consistency, source=VBENCH + ", ViCLIP", needs=("a prompt", "viclip"), worst=-1.0
    ),
    "clip_i": Metric(
        function=lambda e: similarity.reference_similarity(e.frames("clip"), e.reference_features("clip")),
        source="DreamBooth (arXiv:2208.12242)", needs=("references", "clip"),
    ),
    "dino_i": Metric(
        function=lambda e: similarity.reference_similarity(e.frames("dino"), e.reference_features("dino")),
        source="DreamBooth (arXiv:2208.12242)", needs=("references", "dino"),
    ),
    "clip_t": Metric(
        function=lambda e: similarity.text_similarity(e.frames("clip"), e.text),
        source="CLIPScore (arXiv:2104.08718)", needs=("prompt", "clip"),
    ),
    "temporal_consistency": Metric(
        function=lambda e: temporal.temporal_consistency(e.frames(e.tools.temporal_role)), source=CONTEXT,
        needs=("clip",),
    ),
    "first_latent_consistency": Metric(
        function=lambda e: temporal.first_latent_consistency(e.frames(e.tools.temporal_role)), source=OWN,
        needs=("clip",),
    ),
    "arcface": _identity("arcface", CONTEXT, shifted=False),
    "holi_arc": _identity("arcface", ANYID, shifted=True),
    "holi_cur": _identity("curricularface", ANYID, shifted=True),
    "ele_clip": Metric(function=_element("clip"), source=ANYID, needs=("references", "masks", "clip")),
    "ele_dino": Metric(function=_element("dino"), source=ANYID, needs=("references", "masks", "dino")),
    "app": _elsewhere("app", ANYID + ", a VLM"),
    "mot": _elsewhere("mot", ANYID + ", a VLM"),
    "bg": _elsewhere("bg", ANYID + ", a VLM"),
    "sta": _elsewhere("sta", ANYID),
    "dyn": _elsewhere("dyn", ANYID),
    "set_clip_i": Metric(function=lambda e: _pairs(e.frames("clip")), source=CHARACONSIST, needs=("clip",)),
    "set_clip_i_fg": Metric(function=_foreground, source=CHARACONSIST, needs=("masks", "clip")),
    "set_clip_i_bg": Metric(
        function=lambda e: _pairs(e.backgrounds("clip")), source=CHARACONSIST, needs=("masks", "clip")
    ),
    "id_sim": Metric(function=_pairwise_identity, source=CHARACONSIST, needs=("faces:arcface",), worst=-1.0),
    "iqs": _elsewhere("iqs", CHARACONSIST),
    "ias": _elsewhere("ias", CHARACONSIST),
    "lct_consistency": Metric(
        function=lambda e: (_subject_consistency(e) + _background_consistency(e)) / 2, source=LCT,
        needs=("vbench-dino", "clip"),
    ),
    "first_frame_leak": Metric(
        function=_leak(leaks.first_frame_leak), source=OWN, needs=("references",), worst=1.0, higher=False
    ),
    "reference_leak": Metric(
        function=_leak(leaks.reference_leak), source=OWN, needs=("references",), worst=1.0, higher=False
    ),
    "copy_paste_rate": Metric(
        function=_copy_paste, source=OWN, needs=("references", "masks"), worst=1.0, higher=False
    ),
    **{
        field: Metric(
            function=_presence(field), source=OWN, needs=("references", "masks", "clip"), worst=1.0, higher=False
        )
        for field in ("missing", "duplicated", "overlapping", "swapped")
    },
}  # fmt: skip

_FIVE = ("subject_consistency", "background_consistency", "motion_smoothness", "aesthetic_quality", "imaging_quality")
SUITES: Mapping[str, tuple[str, ...]] = {
    "kaleido": (*_FIVE, "overall_consistency", "s2v_decoupling", "s2v_consistency"),
    "vbench": (*_FIVE, "temporal_flickering", "dynamic_degree", "overall_consistency"),
    "anyid": ("holi_arc", "holi_cur", "ele_clip", "ele_dino", "app", "mot", "bg", "sta", "dyn"),
    "contextanyone": ("arcface", "dino_i", "clip_i", "temporal_consistency", "first_latent_consistency"),
    "characonsist": ("clip_t", "set_clip_i", "set_clip_i_fg", "set_clip_i_bg", "id_sim", "iqs", "ias"),
    "lct": ("aesthetic_quality", "imaging_quality", "lct_consistency", "overall_consistency"),
    "leaks": (
        "first_frame_leak", "reference_leak", "copy_paste_rate", "missing", "duplicated", "overlapping", "swapped",
        "motion_smoothness_halfway",
    ),
}  # fmt: skip
