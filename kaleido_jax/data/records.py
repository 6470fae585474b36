"""What one sample is as arrays: the record that loaders pass on, data sets store and batches stack.

| key | dtype, shape | meaning |
|---|---|---|
| video | uint8 [frames, height, width, 3] | |
| masks | uint8 [frames, height, width] | the subject seen at each pixel, 0 for none |
| references | uint8 [3, height, width, 3] | whole canvases; absent ones are white |
| reference_count | int32 [] | how many of them are there; they come first |
| reference_subjects | int32 [3] | the subject that each shows (1, 2), 0 for the scene, -1 for absent |
| reference_pictures | int32 [3] | which picture of that subject it is, from 0; -1 for absent |
| prompt | str | |
| motions | int32 [2] | index into MOTIONS for each subject, -1 for absent |
| scene | int32 [] | index into SCENE_NAMES |
| identities | int64 [2] | number of each subject's identity, -1 for absent |

A batch has one more axis in front of every array, and `prompt` is an array of str.
"""

from collections.abc import Sequence

import numpy as np

from kaleido_jax.data.motions import MOTIONS
from kaleido_jax.data.scenes import PHOTO, SCENES
from kaleido_jax.data.world import MAX_REFERENCES, MAX_SUBJECTS, Sample

SCENE_NAMES = (*SCENES, PHOTO)
Record = dict[str, np.ndarray | str]
Batch = dict[str, np.ndarray]


def _filled(values: Sequence[int], length: int, dtype: type) -> np.ndarray:
    return np.array([*values, *[-1] * (length - len(values))], dtype)


def to_record(sample: Sample) -> Record:
    """The record of one sample."""
    story = sample.truth["story"]
    references = np.full((MAX_REFERENCES, *sample.video.shape[1:]), 255, np.uint8)
    subjects = [subject for _, subject in sample.references]
    for i, (picture, _) in enumerate(sample.references):
        references[i] = picture
    return {
        "video": sample.video,
        "masks": sample.masks,
        "references": references,
        "reference_count": np.array(len(subjects), np.int32),
        "reference_subjects": _filled(subjects, MAX_REFERENCES, np.int32),
        "reference_pictures": _filled(
            [subjects[:i].count(s) for i, s in enumerate(subjects)], MAX_REFERENCES, np.int32
        ),
        "prompt": sample.prompt,
        "motions": _filled([MOTIONS.index(motion) for motion in story.motions], MAX_SUBJECTS, np.int32),
        "scene": np.array(SCENE_NAMES.index(story.scene), np.int32),
        "identities": _filled([one.number for one in story.identities], MAX_SUBJECTS, np.int64),
    }


def to_batch(records: Sequence[Record]) -> Batch:
    """Stacks records of one bucket; ValueError where their videos differ in shape."""
    shapes = {np.shape(record["video"]) for record in records}
    if len(shapes) != 1:
        raise ValueError(f"video has the shapes {sorted(shapes)} in one batch; a batch takes samples of one bucket.")
    batch = {key: np.stack([_array(record[key]) for record in records]) for key in records[0] if key != "prompt"}
    return batch | {"prompt": np.array([_text(record["prompt"]) for record in records])}


def _array(value) -> np.ndarray:
    """A stored scalar comes back as a Python integer."""
    return np.array(value, np.int32) if isinstance(value, int) else value


def _text(prompt) -> str:
    """And a stored prompt as bytes."""
    return prompt.decode() if isinstance(prompt, bytes) else str(prompt)
