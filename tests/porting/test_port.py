"""Checkpoints from one kind to another: bitwise there and back, loaded by those who made the formats, and refused."""

import dataclasses
import json
import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from diffusers import AutoencoderKLWan, WanTransformer3DModel

from kaleido_jax.bundle import load_bundle, parameters
from kaleido_jax.config import to_json
from kaleido_jax.errors import InputError, StorageError, UsageError
from kaleido_jax.models.mapping import from_torch
from kaleido_jax.models.text.umt5 import params as umt5_params
from kaleido_jax.models.vae.config import VAEConfig
from kaleido_jax.models.wan.config import WanConfig
from kaleido_jax.parallel import MeshConfig
from kaleido_jax.porting import export, inspect, load, port, writing
from kaleido_jax.porting.formats import FORMATS, OURS, family_of, layouts
from kaleido_jax.testing.checkpoints import SMALL, assert_same_bits, random_tensors, tensors_of, wan_folder, write
from kaleido_jax.testing.tiny import TINY_CONFIG, save_tiny_bundle
from kaleido_jax.testing.wan import TINY, diffusers_model, random_inputs, run_peer
from kaleido_jax.testing.weights import randomise

CASES = {f"{row.family.name}, {row.layout}": row for row in FORMATS}


@pytest.mark.parametrize("name", CASES)
def test_there_and_back_is_bitwise(name, tmp_path):
    """To our own names, with layers stacked and axes turned, and back to what it was; the same through orbax."""
    row = CASES[name]
    config = SMALL[row.family.name]
    dtype = {"wan": jnp.bfloat16, "wan-vae": np.float16}.get(row.family.name, np.float32)
    tensors = random_tensors(row, config, dtype)
    source = write(tmp_path / "source", row, tensors, config)
    for step, to in (("ours", OURS), ("arrays", "orbax"), ("back", row.layout)):
        if to == row.layout == OURS:
            continue
        port(source, tmp_path / step, to=to)
        source = tmp_path / step
    if row.layout != OURS:
        assert_same_bits(tensors_of(tmp_path / "back"), tensors)
        written, given = ((tmp_path / at / "config.json") for at in ("back", "source"))
        assert written.exists() == given.exists()
        if given.exists():
            assert json.loads(written.read_text()) == json.loads(given.read_text())


@pytest.mark.parametrize("name", CASES)
def test_arrays_are_those_of_the_table(name, tmp_path):
    """`load` streams to the same arrays as turning and stacking everything in memory gives."""
    row = CASES[name]
    config = SMALL[row.family.name]
    tensors = random_tensors(row, config, jnp.bfloat16)
    found, arrays = load(write(tmp_path / "source", row, tensors, config))
    assert found == config or row.family.name == "wan-vae"  # an original VAE has no statistics beside it
    expected = from_torch(tensors, row.table(config), row.family.abstract_parameters(config), "weights")
    assert_same_bits({name: np.asarray(array) for name, array in arrays.items()}, expected)


def test_every_family_is_tested():
    assert {row.family.name for row in FORMATS} == set(SMALL)
    assert len({(row.family.name, row.layout) for row in FORMATS}) == len(FORMATS)


def test_sizes_belong_to_one_family():
    """Two families share a class of sizes; a family is told by what it owns, of released sizes and small ones."""
    families = {row.family.name: row.family for row in FORMATS}.values()
    for family in families:
        for config in [*(make() for make in family.sizes.values()), SMALL[family.name]]:
            assert [other.name for other in families if other.has(config)] == [family.name] == [family_of(config).name]
    with pytest.raises(UsageError, match="config is a str; weights are known here for CLIPTextConfig, "):
        family_of("wan")


@pytest.mark.parametrize("to", ["orbax", "original", "kaleido"])
def test_dino_is_exported_as_dino(tmp_path, to):
    config = SMALL["dino"]
    parameters = {name: np.ones(x.shape, x.dtype) for name, x in family_of(config).abstract_parameters(config).items()}
    exported = export(parameters, config, tmp_path / "dino", to=to)
    assert (exported.family, inspect(tmp_path / "dino").family) == ("dino", "dino")
    document = tmp_path / "dino" / "config.json"
    if document.exists():
        document.write_text(document.read_text().replace('"family": "dinov2"', '"family": "clip"'))
        with pytest.raises(InputError, match="the sizes are those of clip-vision weights, not of dino"):
            inspect(tmp_path / "dino")


@pytest.mark.parametrize("changes", [{"data_std": (1.0, 2.0, 1.0, 1.0)}, {"emphasis": True, "image_dim": 4}])
def test_what_no_other_project_computes_stays_ours(tmp_path, changes):
    """A network that others' classes would load and run as another one is refused, to a folder and to a file."""
    config = dataclasses.replace(TINY_CONFIG.transformer, **changes)
    parameters = {name: np.ones(x.shape, x.dtype) for name, x in family_of(config).abstract_parameters(config).items()}
    for to, name in (("diffusers", "there"), ("original", "there.safetensors"), ("kaleido-sat", "there")):
        with pytest.raises(InputError, match=f"{next(iter(changes))} is .*, which only our own layouts"):
            export(parameters, config, tmp_path / name, to=to)
    assert not os.listdir(tmp_path)
    export(parameters, config, tmp_path / "ours", to="kaleido")
    assert inspect(tmp_path / "ours").config == config


@pytest.mark.parametrize("image", [None, "a frame", "two frames"])
def test_diffusers_loads_what_we_write(tmp_path, image):
    """Saved by diffusers, through the original layout and our arrays, and loaded by diffusers: equal outputs."""
    config = TINY if image is None else dataclasses.replace(TINY, image_dim=24, in_channels=9)
    if image == "two frames":
        config = dataclasses.replace(config, image_positions=14)
    model = randomise(diffusers_model(config, pos_embed_seq_len=config.image_positions), 0)
    model.save_pretrained(tmp_path / "theirs")
    port(tmp_path / "theirs", tmp_path / "original", to="original")
    port(tmp_path / "original", tmp_path / "arrays", to="orbax")
    port(tmp_path / "arrays", tmp_path / "diffusers", shard_bytes=20_000)
    assert (tmp_path / "diffusers" / "diffusion_pytorch_model.safetensors.index.json").exists()
    again, information = WanTransformer3DModel.from_pretrained(tmp_path / "diffusers", output_loading_info=True)
    assert not any(information.values()), information
    inputs = random_inputs(config, 1, 2, 4, 6)
    if image == "two frames":  # rows of a batch there
        inputs = dataclasses.replace(inputs, image=np.random.default_rng(1).standard_normal((2, 7, 24), np.float32))
    with torch.no_grad():
        assert torch.equal(run_peer(model, inputs), run_peer(again.eval(), inputs))


@pytest.mark.parametrize("residual", [False, True])
def test_diffusers_loads_our_vae(tmp_path, residual):
    sizes = {"base_dim": 8, "z_dim": 4, "num_res_blocks": 1, "latents_mean": [0.5] * 4, "latents_std": [2.0] * 4}
    if residual:
        sizes |= {"is_residual": True, "in_channels": 12, "out_channels": 12, "patch_size": 2, "decoder_base_dim": 16}
    model = randomise(AutoencoderKLWan(**sizes), 0)
    model.save_pretrained(tmp_path / "theirs")
    port(tmp_path / "theirs", tmp_path / "arrays", to="orbax")
    port(tmp_path / "arrays", tmp_path / "diffusers")
    again, information = AutoencoderKLWan.from_pretrained(tmp_path / "diffusers", output_loading_info=True)
    assert not any(information.values()), information
    assert again.config.latents_mean == [0.5] * 4
    video = torch.randn(1, 3, 5, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(video).sample, again.eval()(video).sample)


def test_transformers_loads_our_text_encoder(tmp_path):
    config = SMALL["umt5"]
    document = umt5_params.config_document(config, "huggingface")
    model = randomise(transformers.UMT5EncoderModel(transformers.UMT5Config(**document)), 0)
    model.save_pretrained(tmp_path / "theirs")
    port(tmp_path / "theirs", tmp_path / "wan.safetensors", to="original")
    port(tmp_path / "wan.safetensors", tmp_path / "huggingface")
    again, information = transformers.UMT5EncoderModel.from_pretrained(
        tmp_path / "huggingface", output_loading_info=True
    )
    assert not any(information.values()), information
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    with torch.no_grad():
        assert torch.equal(model(ids).last_hidden_state, again.eval()(ids).last_hidden_state)


def test_dtypes_are_kept_unless_asked(tmp_path):
    source = wan_folder(tmp_path / "source", dtype=np.float32)
    port(source, tmp_path / "half", dtype="bfloat16")
    for name, tensor in tensors_of(port_again(tmp_path / "half")).items():
        assert tensor.dtype == jnp.bfloat16
        np.testing.assert_array_equal(tensor, tensors_of(source)[name].astype(jnp.bfloat16))
    with pytest.raises(UsageError, match="no dtype 'bflaot16'; did you mean 'bfloat16'"):
        port(source, tmp_path / "other", dtype="bflaot16")


def port_again(folder):
    """A diffusers folder in the original layout."""
    port(folder, folder.with_name("again"), to="original")
    return folder.with_name("again")


@pytest.mark.parametrize("to", ["diffusers", "orbax"])
def test_numbers_that_do_not_fit_are_named(tmp_path, to):
    source = wan_folder(tmp_path / "source", dtype=np.float32, **{"head.head.bias": np.full(24, 1e5, np.float32)})
    with pytest.raises(InputError, match="does not fit float16"):
        port(source, tmp_path / "half", to=to, dtype="float16")
    assert os.listdir(tmp_path) == ["source"]


@pytest.mark.parametrize("to", ["diffusers", "orbax"])
def test_weights_that_are_no_numbers_are_refused_by_name(tmp_path, to):
    source = wan_folder(tmp_path / "source")
    tensors = tensors_of(source)
    for name, value in (("blocks.1.ffn.0.weight", np.nan), ("head.head.bias", -np.inf)):
        tensors[name].reshape(-1)[-1] = value
    safetensors.numpy.save_file(tensors, str(source / "diffusion_pytorch_model.safetensors"))
    with pytest.raises(InputError, match=r"2 problems .*blocks\.1\.ffn\.0\.weight holds NaN.*head\.head\.bias holds"):
        port(source, tmp_path / "other", to=to)
    assert os.listdir(tmp_path) == ["source"]
    with pytest.raises(InputError, match="holds NaN"):
        load(source)
    port(source, tmp_path / "other", to=to, allow_nonfinite=True)
    port(tmp_path / "other", tmp_path / "back", to="original", allow_nonfinite=True)
    assert_same_bits(tensors_of(tmp_path / "back"), tensors)


def test_all_problems_of_the_keys_stand_in_one_error(tmp_path):
    source = wan_folder(
        tmp_path / "source",
        **{"head.head.bias": None, "extra": np.zeros(2), "blocks.0.norm3.bias": np.zeros((7,), jnp.bfloat16)},
    )
    expected = r"3 problems in .*missing head\.head\.bias; unexpected extra; blocks\.0\.norm3\.bias has shape \(7,\)"
    with pytest.raises(InputError, match=expected):
        port(source, tmp_path / "other")
    assert os.listdir(tmp_path) == ["source"]


def test_layers_of_different_dtypes_are_named(tmp_path):
    source = wan_folder(tmp_path / "source", **{"blocks.2.norm3.bias": np.zeros(256, np.float32)})
    with pytest.raises(InputError, match=r"blocks\.0\.norm3\.bias .*different dtypes: bfloat16 and float32"):
        port(source, tmp_path / "other")


def test_two_names_of_one_tensor(tmp_path):
    row, config = layouts("umt5")["huggingface"], SMALL["umt5"]
    tensors = random_tensors(row, config)
    alias = "encoder.embed_tokens.weight"
    both = tensors | {alias: tensors["shared.weight"]}
    other = {alias if name == "shared.weight" else name: tensor for name, tensor in tensors.items()}
    for name, found in (("both", both), ("other", other)):
        port(write(tmp_path / name, row, found, config), tmp_path / f"{name} ported")
        assert_same_bits(tensors_of(tmp_path / f"{name} ported"), tensors)
    both[alias] = both[alias] + 1
    with pytest.raises(InputError, match="are one tensor, but hold different values"):
        port(write(tmp_path / "unequal", row, both, config), tmp_path / "never")


def test_a_destination_that_exists_stays_unless_asked(tmp_path):
    source = wan_folder(tmp_path / "source")
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match="exists; choose another"):
        port(source, tmp_path / "there")
    port(source, tmp_path / "there", overwrite=True)
    port(source, tmp_path / "there", to="orbax", overwrite=True)
    assert sorted(os.listdir(tmp_path / "there")) == ["arrays", "config.json", "manifest.json"]
    (tmp_path / "there" / "thesis.txt").write_text("all my work")
    with pytest.raises(UsageError, match=r"also holds thesis\.txt"):
        port(source, tmp_path / "there", overwrite=True)
    port(source, source, overwrite=True)  # in place: read until the end, then replaced
    assert (source / "config.json").read_text().count("WanTransformer3DModel") == 1
    assert sorted(os.listdir(tmp_path)) == ["source", "there"]


@pytest.mark.parametrize("to", ["diffusers", "orbax", "original"])
def test_a_failure_leaves_the_destination_as_it_was(tmp_path, monkeypatch, to):
    source = wan_folder(tmp_path / "source")
    port(source, tmp_path / "there")
    before = {path.name: path.read_bytes() for path in (tmp_path / "there").iterdir()}

    def interrupted(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        port(source, tmp_path / "there", to=to, overwrite=True, progress=interrupted)
    assert {path.name: path.read_bytes() for path in (tmp_path / "there").iterdir()} == before
    assert sorted(os.listdir(tmp_path)) == ["source", "there"]


def test_a_full_disk_is_a_sentence(tmp_path, monkeypatch):
    source = wan_folder(tmp_path / "source")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "write_all", full)
    with pytest.raises(StorageError, match="the disk is full"):
        port(source, tmp_path / "there")
    assert os.listdir(tmp_path) == ["source"]


def test_progress_reaches_all_bytes(tmp_path):
    seen: list[tuple[int, int]] = []
    ported = port(wan_folder(tmp_path / "source"), tmp_path / "there", progress=lambda *pair: seen.append(pair))
    assert seen == sorted(seen) and seen[-1] == (ported.nbytes, ported.nbytes)


def test_torch_is_not_needed_for_safetensors(tmp_path):
    """Someone without the torch extra ports safetensors, and is told of it for a .pth file."""
    source = wan_folder(tmp_path / "source")
    program = (
        "import sys\n"
        "class NoTorch:\n"
        "    def find_spec(name, path, target=None):\n"
        "        if name == 'torch': raise ImportError(name)\n"
        "sys.meta_path.insert(0, NoTorch)\n"
        "from kaleido_jax.porting import port\n"
        f"port({str(source)!r}, {str(tmp_path / 'there')!r})\n"
        f"open({str(tmp_path / 'x.pth')!r}, 'wb').write(b'PK')\n"
        f"port({str(tmp_path / 'x.pth')!r}, {str(tmp_path / 'other')!r})\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "InputError: reading and writing .pth files needs PyTorch" in ended.stderr
    assert (tmp_path / "there" / "config.json").exists() and not (tmp_path / "other").exists()


def test_arrays_of_a_mesh_are_exported(tmp_path):
    """docs/porting.md: from a release to a mesh, changed there, and back to a folder that diffusers loads."""
    config = TINY
    model = randomise(diffusers_model(config), 0)
    model.save_pretrained(tmp_path / "release")
    port(tmp_path / "release", tmp_path / "arrays", to="orbax")
    sizes, arrays = load(tmp_path / "arrays", mesh=MeshConfig(fsdp=8).make())
    arrays = {name: array * 2 for name, array in arrays.items()}
    exported = export(arrays, sizes, tmp_path / "trained", dtype="bfloat16")
    assert (exported.family, exported.layout, exported.config) == ("wan", "diffusers", config)
    options = {"torch_dtype": torch.float32, "output_loading_info": True}
    again, information = WanTransformer3DModel.from_pretrained(tmp_path / "trained", **options)
    assert not any(information.values()), information
    for name, value in again.state_dict().items():
        assert torch.equal(value, (2 * model.state_dict()[name]).bfloat16().float()), name
    broken = arrays | {"extra": np.zeros(2)}
    broken["head.projection.bias"] = np.full(broken["head.projection.bias"].shape, np.nan, np.float32)
    with pytest.raises(InputError, match="the parameters: unexpected extra"):
        export(broken, sizes, tmp_path / "other")
    del broken["extra"]
    with pytest.raises(InputError, match=r"the parameters: head\.projection\.bias holds NaN"):
        export(broken, sizes, tmp_path / "other")
    with pytest.raises(UsageError, match=r"config is a dict; weights are known here for .*WanConfig"):
        export(arrays, {}, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_release_becomes_a_model_folder(tmp_path):
    """docs/porting.md: three files of a release, a config.json and a tokenizer are a folder for `load_bundle`."""
    config = dataclasses.replace(
        TINY_CONFIG,
        transformer=WanConfig(dim=128, ffn_dim=64, heads=1, layers=2, text_dim=16, freq_dim=32),
        vae=dataclasses.replace(VAEConfig.wan2_1(), base_dim=8, decoder_base_dim=8, num_res_blocks=1),
    )
    given = load_bundle(save_tiny_bundle(tmp_path / "given", config))
    files = {"transformer": "transformer.safetensors", "vae": "Wan2.1_VAE.pth", "text": "models_t5.pth"}
    for part, name in files.items():
        port(tmp_path / "given" / f"{part}.safetensors", tmp_path / "release" / name, to="original")
        ported = port(tmp_path / "release" / name, tmp_path / "model" / f"{part}.safetensors", to="kaleido")
        assert ported.config == getattr(config, part)
    (tmp_path / "model" / "config.json").write_text(json.dumps({"format": 1} | to_json(config)))
    given.tokenizer.save(tmp_path / "model" / "tokenizer.json")
    again = load_bundle(tmp_path / "model")
    for part in files:
        ours, theirs = parameters(getattr(again, part)), parameters(getattr(given, part))
        assert_same_bits({n: np.asarray(x) for n, x in ours.items()}, {n: np.asarray(x) for n, x in theirs.items()})


def test_unknown_layouts_and_sources(tmp_path):
    source = wan_folder(tmp_path / "source")
    with pytest.raises(
        UsageError, match=r"There is no layout of wan weights 'huggingface'.* Known: diffusers, kaleido"
    ):
        port(source, tmp_path / "there", to="huggingface")
    with pytest.raises(UsageError, match="an orbax checkpoint is a folder"):
        port(source, tmp_path / "there.safetensors", to="orbax")
    with pytest.raises(UsageError, match=r"there is no .*nowhere"):
        port(tmp_path / "nowhere", tmp_path / "there")
    assert os.listdir(tmp_path) == ["source"]


def test_the_folder_of_kaleidos_own_code(tmp_path):
    """What its loader looks for: a file that names the iteration's folder, and in that one a .pt with a `module`."""
    source = wan_folder(tmp_path / "source", "diffusers")
    port(source, tmp_path / "sat", to="kaleido-sat")
    assert sorted(str(x.relative_to(tmp_path / "sat")) for x in (tmp_path / "sat").rglob("*")) == [
        "1", "1/mp_rank_00_model_states.pt", "latest",
    ]  # fmt: skip
    document = torch.load(tmp_path / "sat" / "1" / "mp_rank_00_model_states.pt", weights_only=True)
    fused = document["module"]["model.diffusion_model.transformer.layers.2.cross_attention.key_value.weight"]
    assert list(document) == ["module"] and fused.shape == (512, 256) and fused.dtype == torch.bfloat16
    port(tmp_path / "sat", tmp_path / "back", to="diffusers")
    assert_same_bits(tensors_of(tmp_path / "back"), tensors_of(source))
    file = tmp_path / "sat" / "1" / "mp_rank_00_model_states.pt"
    file.rename(file.with_name("fsdp2_rank_0000_checkpoint.pt"))  # its other name, after training with FSDP
    found = inspect(tmp_path / "sat")
    assert (found.layout, found.problems) == ("kaleido-sat", [])
    (tmp_path / "sat" / "latest").write_text("../sat/1")
    with pytest.raises(InputError, match=r"latest: names '\.\./sat/1', which is no folder beside it"):
        port(tmp_path / "sat", tmp_path / "again", to="diffusers")
