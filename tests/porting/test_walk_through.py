"""docs/porting.md from a release to a mesh and back, its own lines at a small size: what they say is what they do."""

import re
import shlex
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers import WanTransformer3DModel

from kaleido_jax.cli.main import main
from kaleido_jax.porting import port
from kaleido_jax.testing import relative_error
from kaleido_jax.testing.wan import TINY, diffusers_model, plain_table, random_inputs, run_ours, run_peer, video_layout
from kaleido_jax.testing.weights import randomise

DOCUMENT = Path(__file__).parents[2] / "docs" / "porting.md"
SECTION = "From a Wan 14B release to a mesh, and back to diffusers"


def test_a_release_is_trained_on_a_mesh_and_goes_back(tmp_path, monkeypatch, capsys):
    """After a step of gradient descent, diffusers' class computes what ours does from the same weights."""
    text = DOCUMENT.read_text().partition(f"## {SECTION}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```(bash|python)\n(.*?)```", text, re.DOTALL)
    assert [kind for kind, _ in blocks] == ["bash", "python", "python"]
    commands, before, after = (code for _, code in blocks)
    source = re.search(r"port (\S+)/diffusion_pytorch_model.safetensors.index.json", commands)
    assert source is not None
    monkeypatch.chdir(tmp_path)
    model = randomise(diffusers_model(TINY), 0)
    model.save_pretrained("saved")
    port("saved", source[1], to="original", shard_bytes=20_000)
    for line in commands.strip().splitlines():
        program, *arguments = shlex.split(line)
        assert program == "kaleido" and main(arguments) == 0, capsys.readouterr().err
    assert "problems     none" in capsys.readouterr().out

    inputs = random_inputs(TINY, 1, 2, 4, 6)
    layout = video_layout(TINY, inputs.video)
    tokens = np.random.default_rng(1).standard_normal((1, 12, 4 * TINY.in_channels)).astype(np.float32)
    target = np.random.default_rng(2).standard_normal((1, 12, 4 * TINY.out_channels)).astype(np.float32)

    def loss(model, tokens, words, target):
        out = model(tokens, plain_table(layout, inputs.time), words, layout=layout)
        return jnp.mean(jnp.square(out - target))

    lines: dict[str, Any] = {"loss": loss}
    exec(compile(before, "docs/porting.md", "exec"), lines)  # what a reader pastes
    parameters = lines["parameters"]
    assert lines["config"] == TINY
    divided = [x for x in parameters.values() if not x.sharding.is_fully_replicated]
    assert len(divided) > 20 and all(len(x.sharding.device_set) == 8 for x in parameters.values())
    gradients = lines["gradient"](parameters, tokens, inputs.text, target)
    lines["parameters"] = jax.tree.map(lambda x, slope: x - 0.1 * slope, parameters, gradients)
    exec(compile(after, "docs/porting.md", "exec"), lines)

    folder = re.search(r'"([^"]+)", to="diffusers", dtype="bfloat16"', after)
    assert folder is not None
    trained, information = WanTransformer3DModel.from_pretrained(
        folder[1], torch_dtype=torch.float32, output_loading_info=True
    )
    assert not any(information.values()), information
    rounded = {name: jnp.asarray(np.asarray(x), jnp.bfloat16) for name, x in lines["parameters"].items()}
    rounded = {name: x.astype(jnp.float32) for name, x in rounded.items()}
    with torch.no_grad():
        theirs, first = (run_peer(model.eval(), inputs) for model in (trained, model))
    assert relative_error(run_ours(rounded, inputs.arrays, jnp.asarray(inputs.time), TINY), theirs) < 1e-5
    assert relative_error(first, theirs) > 1e-3  # it did learn something
