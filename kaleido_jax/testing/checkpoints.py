"""Small checkpoints of every family and layout, with random weights."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from kaleido_jax.models.flux.config import FluxConfig
from kaleido_jax.models.image_vae.config import ImageVAEConfig
from kaleido_jax.models.mapping import torch_shapes
from kaleido_jax.models.mmdit.config import MMDiTConfig
from kaleido_jax.models.text.clip.config import CLIPTextConfig
from kaleido_jax.models.text.umt5.config import UMT5Config
from kaleido_jax.models.vae.config import VAEConfig
from kaleido_jax.models.vision.config import VisionConfig
from kaleido_jax.models.wan.config import WanConfig
from kaleido_jax.porting.formats import FORMATS, Format, layouts
from kaleido_jax.porting.torch_files import TorchFile

# One odd configuration of each family in kaleido_jax.porting.formats; its sizes can be told from its shapes,
# unless only our own names are known.
SMALL = {
    "wan": WanConfig(
        dim=256, ffn_dim=52, heads=2, layers=3, in_channels=5, out_channels=4, text_dim=20, freq_dim=32, patch=(1, 2, 3)
    ),
    "wan-vae": dataclasses.replace(VAEConfig.wan2_2(), base_dim=8, decoder_base_dim=16, num_res_blocks=1),
    "umt5": UMT5Config(vocab_size=31, dim=12, heads=2, head_dim=10, ffn_dim=14, layers=3, buckets=8),
    "flux": FluxConfig(
        dim=128,
        ffn_dim=52,
        heads=1,
        double_layers=2,
        single_layers=1,
        guidance=True,
        channels=5,
        text_dim=9,
        pooled_dim=7,
        freq_dim=32,
    ),
    "lct-mmdit": MMDiTConfig(dim=24, ffn_dim=20, heads=2, layers=3, channels=5, text_dim=9, freq_dim=8),
    "image-vae": dataclasses.replace(ImageVAEConfig.flux(), z_dim=3, channels=(32, 32, 64), num_res_blocks=1),
    "clip-text": CLIPTextConfig(vocab_size=21, positions=9, dim=128, ffn_dim=20, heads=2, layers=3, end_id=20),
    "clip-vision": dataclasses.replace(
        VisionConfig.clip_b32(), dim=128, ffn_dim=20, heads=2, layers=3, patch=3, image_size=9, projection=7
    ),
    "dino": dataclasses.replace(
        VisionConfig.dinov2_g14().with_registers(), dim=128, ffn_dim=88, heads=2, layers=3, patch=2, image_size=6
    ),
}
ROWS = {f"{row.family.name}, {row.layout}": row for row in FORMATS}


def random_tensors(row: Format, config, dtype=np.float32, seed: int = 0) -> dict[str, np.ndarray]:
    """A checkpoint of this format with normal numbers."""
    random = np.random.default_rng(seed)
    shapes = torch_shapes(row.table(config), row.family.abstract_parameters(config))
    return {name: random.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def write(folder: Path, row: Format, tensors: dict[str, np.ndarray], config=None) -> Path:
    """A folder with the tensors and, if a config is given, its config.json; written by the public library."""
    folder.mkdir()
    safetensors.numpy.save_file(tensors, str(folder / f"{row.weights}.safetensors"), metadata={"format": "pt"})
    document = row.config_document(config) if config is not None else {}
    if document:
        (folder / "config.json").write_text(json.dumps(document))
    return folder


def wan_folder(folder: Path, layout: str = "original", dtype=jnp.bfloat16, **changes) -> Path:
    """A small Wan checkpoint; `changes` are tensors to put in, or None to leave one out."""
    row = layouts("wan")[layout]
    tensors = random_tensors(row, SMALL["wan"], dtype) | changes
    return write(folder, row, {name: x for name, x in tensors.items() if x is not None}, SMALL["wan"])


def tensors_of(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a safetensors file or of all of a folder, read by the public library; Kaleido's own, by ours."""
    if (path / "latest").is_file():
        return _tensors_of_torch(path / (path / "latest").read_text())
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    return {name: tensor for file in files for name, tensor in safetensors.numpy.load_file(str(file)).items()}


def _tensors_of_torch(folder: Path) -> dict[str, np.ndarray]:
    (path,) = folder.iterdir()
    file = TorchFile(path)
    return {name: file.read(name) for name in file.tensors}


def assert_same_bits(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> None:
    """Equal names, dtypes, shapes and bytes."""
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (tensor.dtype, tensor.shape), name
        assert np.asarray(ours[name]).tobytes() == tensor.tobytes(), name
