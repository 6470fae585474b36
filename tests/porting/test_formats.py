"""Checkpoints are recognised, at real sizes too, and described; what is none is said to be none."""

import dataclasses
import json
import os

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel

from kaleido_jax.errors import InputError, UsageError
from kaleido_jax.manifest import write_manifest
from kaleido_jax.models.mapping import table_of, torch_shapes
from kaleido_jax.models.wan.config import WanConfig
from kaleido_jax.porting import inspect, port
from kaleido_jax.porting.formats import FORMATS, OURS, layout_of, layouts, nearest_size, recognise
from kaleido_jax.testing.checkpoints import SMALL, random_tensors, wan_folder, write
from kaleido_jax.testing.tiny import save_tiny_bundle

CASES = {f"{row.family.name}, {row.layout}": row for row in FORMATS}


@pytest.mark.parametrize("name", CASES)
def test_each_format_is_recognised_and_its_sizes_found(name):
    """From names and shapes alone, or from the config.json beside them."""
    row = CASES[name]
    config = SMALL[row.family.name]
    shapes = torch_shapes(row.table(config), row.family.abstract_parameters(config))
    assert recognise(shapes) is row
    document = row.config_document(config)
    if row.layout != OURS:
        assert row.config_from(shapes, None) == config
        assert row.config_from(shapes, {"_class_name": "SomethingElse", "num_layers": 77}) == config
    if document:
        assert row.config_from(shapes, json.loads(json.dumps(document))) == config


@pytest.mark.parametrize("name", ["Wan2.1-T2V-1.3B", "Wan2.1-I2V-14B", "Wan2.2-TI2V-5B"])
def test_released_sizes_are_told_from_the_names_of_diffusers_class(name):
    """diffusers' own class on the meta device gives names and shapes at full size; no tensor is made."""
    row = layouts("wan")["diffusers"]
    config = row.family.sizes[name]()
    options = {key: x for key, x in row.config_document(config).items() if key != "_class_name"}
    with torch.device("meta"):
        shapes = {key: tuple(x.shape) for key, x in WanTransformer3DModel(**options).state_dict().items()}
    assert recognise(shapes) is row
    assert row.config_from(shapes, None) == config
    assert nearest_size(row.family, config) == (name, [])


def test_inspect(tmp_path):
    source = wan_folder(tmp_path / "source", **{"head.head.bias": None, "extra": np.zeros(3, np.float32)})
    found = inspect(source)
    assert (found.family, found.layout, found.config) == ("wan", "original", SMALL["wan"])
    assert found.problems == ["missing head.head.bias", "unexpected extra"]
    assert found.dtypes["float32"] == 3 and sum(found.dtypes.values()) == found.parameters
    port(wan_folder(tmp_path / "whole"), tmp_path / "arrays", to="orbax")
    found = inspect(tmp_path / "arrays")
    assert (found.layout, found.problems, list(found.dtypes)) == ("orbax", [], ["bfloat16"])


def test_a_lost_layer_is_missed(tmp_path):
    """Layers that are lost are missing, whether the config.json tells their number or only the ones that are left."""
    row = layouts("wan")["original"]
    tensors = random_tensors(row, SMALL["wan"])
    kept = {name: x for name, x in tensors.items() if not name.startswith("blocks.2.")}
    folder = write(tmp_path / "told", row, kept, SMALL["wan"])
    assert {problem.split(".")[0] for problem in inspect(folder).problems} == {"missing blocks"}
    kept = {name: x for name, x in tensors.items() if not name.startswith("blocks.1.")}
    folder = write(tmp_path / "untold", row, kept)
    assert all(problem.startswith("missing blocks.1.") for problem in inspect(folder).problems)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"num_layers": "3"}, "num_layers of the config.json is '3'; expected a positive whole number"),
        ({"num_heads": 0}, "num_heads of the config.json is 0"),
        ({"num_heads": 7}, "not the sizes of a Wan transformer: .*even multiple of the 7 heads"),
        ([], "is not a JSON object"),
    ],
)
def test_a_config_that_cannot_be(tmp_path, document, expected):
    folder = wan_folder(tmp_path / "source")
    if isinstance(document, dict):
        document = json.loads((folder / "config.json").read_text()) | document
    (folder / "config.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=expected):
        inspect(folder)


def test_what_is_no_known_family():
    with pytest.raises(InputError, match="not weights of a family that is known here; tensors begin with x"):
        recognise({"x": ()})
    with pytest.raises(InputError, match=r"nearest are umt5 weights of layout wan, but .* is missing"):
        recognise({"token_embedding.weight": ()})
    for name in ("transformer.blocks.0.attn1.to_q.lora_A.weight", "lora_unet_blocks_0_self_attn_q.lora_down.weight"):
        with pytest.raises(InputError, match="this is a LoRA, a change of a model's weights and no model"):
            recognise({name: ()})


def test_names_of_layouts():
    assert layout_of("umt5", "diffusers").layout == "huggingface" and layout_of("umt5", "original").layout == "wan"
    with pytest.raises(UsageError, match="no layout of wan weights 'difusers'; did you mean 'diffusers'"):
        layout_of("wan", "difusers")


def test_sizes_between_releases():
    config = dataclasses.replace(WanConfig.t2v_14b(), layers=30)
    assert nearest_size(layouts("wan")["original"].family, config) == ("Wan2.1-T2V-14B", ["layers is 30 instead of 40"])


def test_orbax_folders_that_are_none(tmp_path):
    (tmp_path / "arrays").mkdir()
    with pytest.raises(InputError, match="says family None, which is not known here"):
        inspect(tmp_path)
    port(wan_folder(tmp_path / "source"), tmp_path / "ported", to="orbax")
    for path in (tmp_path / "ported" / "arrays").rglob("*"):
        if path.is_file():
            os.truncate(path, 0)
    with pytest.raises(InputError, match=r"is damaged: .* has 0 bytes, not \d+"):
        inspect(tmp_path / "ported")
    (tmp_path / "ported" / "manifest.json").unlink()
    write_manifest(tmp_path / "ported")
    with pytest.raises(InputError, match="is not an orbax checkpoint that can be read"):
        inspect(tmp_path / "ported")


def test_fused_tensors_must_be_covered_by_their_parts():
    kinds = {
        "linear": (
            (".kernel", ".weight", layouts("wan")["diffusers"].table(SMALL["wan"])["head.projection.kernel"].transform),
        )
    }
    shapes = {"q.kernel": np.zeros((3, 2)), "k.kernel": np.zeros((3, 4))}
    rows = [("q", "qk", "linear", (0, 2)), ("k", "qk", "linear", (2, 6))]
    assert torch_shapes(table_of(rows, kinds), shapes) == {"qk.weight": (6, 3)}
    for wrong in ((1, 5), (3, 7), (2, 5)):
        with pytest.raises(ValueError, match=r"qk\.weight: k\.kernel of shape"):
            torch_shapes(table_of([rows[0], ("k", "qk", "linear", wrong)], kinds), shapes)
    with pytest.raises(ValueError, match="without rows for each"):
        torch_shapes(table_of([rows[0], ("k", "qk", "linear")], kinds), shapes)
    with pytest.raises(ValueError, match="differ in"):
        torch_shapes(table_of(rows[:1], kinds), shapes)


def test_a_model_folder_is_ported(tmp_path):
    """The parts of a folder that training exports, with the config.json that they share."""
    folder = save_tiny_bundle(tmp_path / "model")
    for part, family in (("transformer", "wan"), ("vae", "wan-vae"), ("text", "umt5")):
        ported = port(folder / f"{part}.safetensors", tmp_path / part)
        assert ported.family == family and (tmp_path / part / "config.json").exists()
