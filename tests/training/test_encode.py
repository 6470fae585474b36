"""`kaleido data encode` on a folder in the layout of Kaleido's release, and training a recipe on what it wrote."""

import dataclasses
import functools
import hashlib
import json
import math
import shutil
import types
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from kaleido_jax import config as configs
from kaleido_jax.bundle import load_bundle, save_bundle
from kaleido_jax.cli.main import main
from kaleido_jax.data.buckets import VideoBucket, longest
from kaleido_jax.data.encoded import EncodedData, write_encoded
from kaleido_jax.data.folder import identities, read_sample
from kaleido_jax.data.folder import weights as folder_weights
from kaleido_jax.errors import ExitCode, InputError, StorageError, UsageError
from kaleido_jax.media.clips import read_video
from kaleido_jax.testing.tiny import TINY_CONFIG, WORDS, tiny_bundle
from kaleido_jax.training.sources import CachedSource, padded
from tests.media.test_clips import encode as encode_clip

RECIPE = str(Path(__file__).parents[2] / "configs" / "kaleido_1_3b_pretrain.py")
SAMPLES, HELDOUT = 10, 4  # and two that cannot be used


@pytest.fixture(scope="module", autouse=True)
def quick_compiles():
    """Compiling is nearly all of these tests' time, and nothing here depends on the compiler's effort."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Ten samples, of which every third is upright; one is no video and one has no label."""
    folder, random = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    for name in ("videos", "labels", "references"):
        (folder / name).mkdir()
    for number in range(SAMPLES):
        size = (48, 32) if number % 3 == 2 else (32, 48)
        frames = np.repeat(np.repeat(random.integers(0, 255, (6, size[0] // 8, size[1] // 8, 3)), 8, 1), 8, 2)
        (folder / "videos" / f"clip{number}.mp4").write_bytes(encode_clip(frames.astype(np.uint8), rate=16))
        (folder / "labels" / f"clip{number}.txt").write_text(f"a {WORDS[1 + number % 4]}\n walks left\n")
        (folder / "references" / f"clip{number}").mkdir()
        for picture in range(1, 2 + number % 2):
            pixels = random.integers(0, 255, (20, 30, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "references" / f"clip{number}" / f"ref{picture}.png")
    (folder / "videos" / "none.mp4").write_bytes(b"no video")
    shutil.copy(folder / "labels" / "clip0.txt", folder / "labels" / "none.txt")
    shutil.copytree(folder / "references" / "clip0", folder / "references" / "none")
    shutil.copy(folder / "videos" / "clip0.mp4", folder / "videos" / "unlabelled.mp4")
    (folder / "weights.json").write_text(json.dumps({name: weight_of(name) for name in identities(folder)}))
    return folder


def weight_of(name):
    return 3.0 if name == "clip1" else 1.0


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return Path(shutil.move(save_model(tmp_path_factory.mktemp("model")), tmp_path_factory.mktemp("m") / "model"))


def save_model(folder, seed=0):
    save_bundle(folder / "model", tiny_bundle(seed=seed))
    return folder / "model"


@pytest.fixture(scope="module")
def overrides(model):
    """The recipe with the tiny networks of `kaleido_jax.testing.tiny`."""
    small = {
        "transformer": ("dim", "ffn_dim", "heads", "layers", "in_channels", "out_channels", "text_dim", "freq_dim"),
        "text": ("vocab_size", "dim", "heads", "head_dim", "ffn_dim", "layers"),
    }
    sizes = [f"{part}.{name}={getattr(getattr(TINY_CONFIG, part), name)}" for part in small for name in small[part]]
    return [
        f"vae={model}",
        f"text_encoder={model}",
        "start_from=",
        *sizes,
        "transformer.dtype=float32",
        "data.size=32",
        "data.width=48",
        "data.frames=5",
        "data.buckets=48x32x5,32x48x1",
        "data.text_tokens=8",
        f"data.heldout={HELDOUT}",
        "train.batch=2",
        "train.accumulate=1",
        "train.steps=2",
        "data.reference_buckets=False",
        "mesh.fsdp=1",
        "sampling.steps=2",
        "sampling.pictures=1",
    ]


def encode(pairs, out, overrides, *words):
    arguments = ["data", "encode", RECIPE, "--input", str(pairs), "--out", str(out), "--batch", "2"]
    return main([*arguments, "--shard-size", "4", "--most-rejected", "0.5", *overrides, *words])


@pytest.fixture(scope="module")
def encoded(pairs, overrides, tmp_path_factory):
    """Encoded on a mesh of two devices."""
    out = tmp_path_factory.mktemp("encoded")
    assert encode(pairs, out, overrides, "mesh.fsdp=2") == ExitCode.DONE
    return out


def shards(folder):
    return sorted(path.name for path in folder.rglob("*.arrayrecord"))


def test_what_is_written_is_what_the_networks_make_of_it(encoded, pairs, model):
    splits = {split: EncodedData(encoded / split) for split in ("train", "heldout")}
    names = [name for data in splits.values() for name in data.identities]
    assert sorted(names) == sorted(set(identities(pairs)) - {"none", "unlabelled"})
    smallest = sorted(identities(pairs), key=lambda name: hashlib.sha256(name.encode()).digest())[:HELDOUT]
    assert set(splits["heldout"].identities) <= set(smallest)
    data, bundle = splits["train"], load_bundle(model)
    assert data.weights.tolist() == [weight_of(name) for name in data.identities]
    assert (splits["heldout"].weights == 1).all()  # measured evenly
    buckets = [VideoBucket.parse(text) for text in data.description["buckets"]]
    assert {str(buckets[i]) for i in data.buckets} == {"32x48x5", "48x32x5"}
    sample = data[0]
    pixels = read_sample(pairs, data.identities[0], buckets=buckets, frames_per_second=16, most_references=3)
    latents = jax.jit(bundle.vae.encode)(jnp.asarray(pixels.video[None] / 127.5 - 1, jnp.float32))[0]
    np.testing.assert_allclose(sample.video, latents, atol=2e-3)  # float16
    assert pixels.prompt == sample.prompt and "\n" not in sample.prompt
    assert sample.subjects == tuple(range(1, 1 + data.reference_counts[0]))
    ids, lengths = bundle.tokenizer.encode([sample.prompt], 8)
    text = np.asarray(bundle.text(jnp.asarray(ids), jnp.asarray(lengths)))[0, : lengths[0]]
    assert sample.text.dtype == jnp.bfloat16
    np.testing.assert_allclose(sample.text.astype(np.float32), text, rtol=1e-2, atol=1e-2)  # bfloat16
    assert data.empty_text.shape == (1, 16)


def test_it_goes_on_where_it_was_stopped_and_parts_make_the_whole(encoded, pairs, overrides, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(encoded, again)
    lost = next(iter(sorted((again / "train").glob("0*.json"))))
    Path(again / "train" / json.loads(lost.read_text())["file"]).unlink()
    lost.unlink()
    with pytest.raises(InputError, match=r"lacks 1 of 2 shards, such as 00000"):
        EncodedData(again / "train")
    kept = {path: path.stat().st_mtime_ns for path in again.rglob("*.arrayrecord")}
    assert encode(pairs, again, overrides, "mesh.fsdp=2", "--part", "2/2") == ExitCode.DONE  # another part's shard
    assert not lost.exists()
    assert encode(pairs, again, overrides, "mesh.fsdp=2", "--part", "1/2") == ExitCode.DONE
    assert shards(again) == shards(encoded)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert encode(pairs, again, [*overrides, "data.text_tokens=7"]) == ExitCode.STORAGE


def test_the_recipe_trains_on_it_and_writes_a_whole_model(encoded, overrides, tmp_path, model, capsys, monkeypatch):
    def blank(self, latents):  # the decoder takes longest to compile, and is not what is tested
        frames, height, width = latents.shape[1:4]
        return np.zeros((len(latents), 4 * frames - 3, 8 * height, 8 * width, 3), np.uint8)

    monkeypatch.setattr("kaleido_jax.training.programs.Programs.decode", blank)
    command = ["train", RECIPE, "--workdir", str(tmp_path / "run"), *overrides]
    assert main([*command, "data.folder=" + str(encoded)]) == ExitCode.DONE, capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "heldout" not in line] == [1, 2]
    assert [line["step"] for line in lines if "heldout" in line] == [2]
    assert all(np.isfinite(line["loss"]) for line in lines)
    made, frozen = load_bundle(tmp_path / "run" / "model"), load_bundle(model)
    ids, lengths = frozen.tokenizer.encode(["a red cat"], 8)
    text = [np.asarray(bundle.text(jnp.asarray(ids), jnp.asarray(lengths))) for bundle in (made, frozen)]
    np.testing.assert_allclose(*text, atol=1e-2)  # the frozen encoder, in float16
    other = save_model(tmp_path, seed=1)
    assert main([*command, "data.folder=" + str(encoded), f"vae={other}"]) == ExitCode.BAD_INPUT
    assert "was encoded with the VAE" in capsys.readouterr().err
    assert main([*command, "data.source=latents", f"data.folder={encoded}"]) == ExitCode.USAGE
    assert "kaleido data encode" in capsys.readouterr().err


def source(folder, **changes):
    data = configs.override(configs.load(RECIPE), [f"data.{name}={value}" for name, value in changes.items()]).data
    return CachedSource(EncodedData(folder), None, data, 1, 0)


def test_batches_hold_one_shape_and_dropped_prompts_are_the_empty_one(encoded):
    batches = [source(encoded / "train", text_dropout=0.5, text_tokens=6).batch(step) for step in range(6)]
    assert {batch.video.shape[2:4] for batch in batches} == {(4, 6), (6, 4)}
    lengths = np.concatenate([batch.text_lengths for batch in batches])
    assert 1 in lengths and 5 in lengths
    for batch in batches:
        assert batch.text.shape == (1, 6, 16) and not batch.text[0, batch.text_lengths[0] :].any()
    text, lengths = padded([np.ones((3, 2)), np.ones((1, 2))], 2)
    assert lengths.tolist() == [2, 1] and text.sum(axis=(1, 2)).tolist() == [4, 2]


def test_a_record_that_cannot_be_read_is_replaced_and_too_many_end_the_run(encoded, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(encoded / "train", folder)
    whole = EncodedData(folder, most_bad=1.0)
    (path,) = {folder / json.loads((folder / "00000.json").read_text())["file"]}
    content = bytearray(path.read_bytes())
    place = content.find(np.ascontiguousarray(whole[0].video).tobytes())
    content[place + 5] ^= 1
    path.write_bytes(content)
    damaged = EncodedData(folder, most_bad=1.0)
    with pytest.warns(UserWarning, match=r"record 0 \(.*\) cannot be read and is replaced"):
        found = damaged[0]
    alike = [i for i in range(1, len(whole)) if (whole.buckets[i], whole.reference_counts[i]) == (
        whole.buckets[0], whole.reference_counts[0])]  # fmt: skip
    np.testing.assert_array_equal(found.video, whole[alike[0]].video)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        damaged[0]
    path.write_bytes(content[:-10])
    with pytest.raises(InputError, match=r"has \d+ bytes, not"):
        EncodedData(folder)


def test_too_many_rejects_and_other_samples_are_errors(tmp_path):
    def read(name):
        raise InputError(f"{name} is bad")

    common = {
        "read": read,
        "encode_videos": lambda clips: clips[..., :1],
        "encode_texts": lambda texts: [np.zeros((1, 2), np.float32) for _ in texts],
        "buckets": ["4x4x1"],
        "provenance": {"vae": "a"},
        "shard_size": 2,
    }
    with pytest.raises(InputError, match=r"2 of the 2 samples of shard 0 .* the first is x: x is bad"):
        write_encoded(tmp_path, identities=["x", "y"], **common)
    with pytest.raises(StorageError, match="written with another samples and identities_sha256"):
        write_encoded(tmp_path, identities=["x"], **common)
    assert write_encoded(tmp_path / "all", identities=["x"], most_rejected=1.0, **common) == {"x": "x is bad"}
    with pytest.raises(InputError, match="holds no samples"):
        EncodedData(tmp_path / "all")


def test_samples_come_as_often_as_their_weights_say(tmp_path):
    """And the batch of a step is the same for everybody who asks for it."""
    weights = {"a": 0.5, "b": 0.5, "c": 1.25, "d": 3.0, "e": 0.75, "f": 1.0, "g": 1.0, "h": 0.4}
    sample = types.SimpleNamespace(
        video=np.zeros((1, 4, 4, 3), np.uint8), references=[(np.zeros((4, 4, 3), np.uint8), 1)], prompt="", masks=None
    )
    write = functools.partial(
        write_encoded,
        identities=list(weights),
        read=lambda name: sample,
        encode_videos=lambda clips: clips[..., :1],
        encode_texts=lambda texts: [np.zeros((1, 2), np.float32) for _ in texts],
        buckets=["4x4x1"],
        provenance={},
        shard_size=3,
    )
    write(tmp_path, weights=list(weights.values()))
    with pytest.raises(StorageError, match="written with another weights_sha256"):
        write(tmp_path, weights=[1.0] * len(weights))
    one, other = source(tmp_path), source(tmp_path)
    assert one.batches_per_epoch == len(weights)
    epochs = 200
    names = [one.names(step)[0] for step in range(epochs * len(weights))]
    assert [other.names(step)[0] for step in (1500, 3, 700)] == [names[step] for step in (1500, 3, 700)]
    mean = np.mean(list(weights.values()))
    for name, weight in weights.items():
        counts = [names[i : i + len(weights)].count(name) for i in range(0, len(names), len(weights))]
        assert set(counts) <= {math.floor(weight / mean), math.ceil(weight / mean)}
        # Of each epoch's count the standard deviation is at most 1/2.
        assert np.mean(counts) == pytest.approx(weight / mean, abs=4 * 0.5 / math.sqrt(epochs))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"x": 1', "is no JSON"),
        ("[1, 1]", "is no JSON object"),
        ('{"x": 1}', "has None for y"),
        ('{"x": 1, "y": 0}', "has 0 for y; write a number above 0"),
        ('{"x": NaN, "y": 1}', "has nan for x"),
    ],
)
def test_weights_that_cannot_be_used_are_named(tmp_path, text, says):
    assert folder_weights(tmp_path, ["x", "y"]) is None
    (tmp_path / "weights.json").write_text(text)
    with pytest.raises(InputError, match=says):
        folder_weights(tmp_path, ["x", "y"])


def test_clips_cover_the_nearest_shape(tmp_path):
    """A wide clip whose left half is black: the cut is around the middle."""
    frames = np.zeros((3, 32, 96, 3), np.uint8)
    frames[:, :, 48:] = 255
    (tmp_path / "wide.mp4").write_bytes(encode_clip(frames))
    sizes = [(48, 32), (16, 16), (32, 32), (64, 64)]
    video = read_video(tmp_path / "wide.mp4", sizes=sizes, frames=2, frames_per_second=8)
    assert video.shape == (2, 32, 32, 3)  # the largest square that needs no enlarging
    assert video[:, :, :12].max() < 30 and video[:, :, 20:].min() > 225
    video = read_video(tmp_path / "wide.mp4", sizes=[(64, 64)], frames=1, frames_per_second=8)
    assert video.shape == (1, 64, 64, 3)


def test_buckets():
    buckets = [VideoBucket(height=4, width=8, frames=n) for n in (1, 5, 9)]
    assert longest(buckets, (4, 8), 8) == buckets[1] and longest(buckets, (4, 8), 0) is None
    assert longest(buckets, (8, 4), 9) is None
    with pytest.raises(UsageError, match=r"write HEIGHTxWIDTHxFRAMES"):
        VideoBucket.parse("480x832")
    recipe = configs.load(RECIPE).data
    assert [str(bucket) for bucket in recipe.shapes] == ["480x832x81"]
    with pytest.raises(ValueError, match="text_embeddings is False"):
        dataclasses.replace(recipe, text_embeddings=False)
