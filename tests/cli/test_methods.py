"""`kaleido generate` with tiny models of the other methods, each asked for as its documentation says."""

import dataclasses

import av
import pytest

from kaleido_jax.bundle import save_bundle
from kaleido_jax.methods.registry import METHODS
from kaleido_jax.testing.tiny import TINY_CONFIG, tiny_bundle

ASKED = {
    "anyid": ("--reference", "cat.png", "--reference", "dog.jpg", "--primary", "2", "--prompt", "the subject runs"),
    "contextanyone": ("--reference", "cat.png", "--prompt", "a red cat || it walks left"),
    "lct": ("--scene", "scene.yaml"),
}
SCENE = "prompt: a film\nshots:\n- a red cat walks\n- prompt: a dog\n  references: [dog.jpg]\n- extends: 1\n"


@pytest.mark.parametrize("name", ASKED)
def test_every_method_makes_a_video(kaleido, folder, name):
    transformer = TINY_CONFIG.transformer
    if name == "contextanyone":
        transformer = dataclasses.replace(transformer, image_dim=16, emphasis=True)
    config = dataclasses.replace(TINY_CONFIG, method=name, scheme=METHODS[name]().scheme, transformer=transformer)
    save_bundle(folder / "other", tiny_bundle(config))
    (folder / "scene.yaml").write_text(SCENE)
    code, out, err = kaleido("generate", "--model", "other", *ASKED[name], "--steps", "1", "--out", "o.mp4")
    assert (code, out) == (0, "o.mp4\n"), err
    with av.open("o.mp4") as container:
        assert sum(1 for _ in container.decode(video=0)) == (14 if name == "lct" else 5)
