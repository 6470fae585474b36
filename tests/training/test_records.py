"""What a run writes of itself beside its metrics: TensorBoard's files, its time, and what it was begun with."""

import json
import pathlib
import time

from kaleido_jax import config as configs
from kaleido_jax.training.clock import SAVING, STEPS, Clock
from kaleido_jax.training.experiment import changed_fields
from kaleido_jax.training.metrics import Metrics
from kaleido_jax.training.tensorboard import crc32c, event, record

# Written by tensorboardX 2.6: Event(wall_time=1700000000.5, file_version="brain.Event:2"), and step 300 with
# loss 0.25 and heldout/loss -1.5.
FILE = (
    "1800000000000000a37f4b220900002040fc54d9411a0d627261696e2e4576656e743a322b35311030000000000000"
    "0095f5d05f0900002040fc54d94110ac022a220a0b0a046c6f7373150000803e0a130a0c68656c646f75742f6c6f7373150000c0bf90afca07"
)


def test_event_files_are_those_of_another_writer():
    assert crc32c(b"123456789") == 0xE3069283 and crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, appendix B.4
    written = record(event(1700000000.5, version="brain.Event:2"))
    written += record(event(1700000000.5, step=300, values={"loss": 0.25, "heldout/loss": -1.5}))
    assert written.hex() == FILE


def test_metrics_go_to_tensorboard_too(tmp_path):
    with Metrics(tmp_path / "metrics.jsonl", tensorboard=tmp_path / "tensorboard") as metrics:
        metrics.write(1, {"loss": 0.5, "skipped_in_a_row": 0})
        metrics.write(1, {"loss": 0.25, "heldout": 1})
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    (file,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
    content = file.read_bytes()
    for tag in (b"train/loss", b"train/skipped_in_a_row", b"heldout/loss"):
        assert content.count(tag) == 1


def test_a_clock_goes_on_after_a_restart(tmp_path):
    clock = Clock(tmp_path / "clock.json")
    for what in (STEPS, SAVING, STEPS):
        with clock.spending(what):
            time.sleep(0.01)
    clock.save()
    with clock.spending(STEPS):  # lost
        time.sleep(0.05)
    stored = json.loads((tmp_path / "clock.json").read_text())
    again = Clock(tmp_path / "clock.json")
    assert again.spent == stored["spent"] and 0.02 <= again.spent[STEPS] < 0.05
    assert again.summary().startswith("goodput ") and "starting and lost work" in again.summary()
    (tmp_path / "clock.json").write_text("{")
    assert Clock(tmp_path / "clock.json").spent == {}


def test_what_a_run_cannot_change():
    recipe = configs.load(pathlib.Path(__file__).parents[2] / "configs" / "kaleido_14b_pretrain.py")
    stored = json.loads(json.dumps(configs.to_json(recipe)))
    allowed = [
        "train.steps=5",
        "mesh.fsdp=4",
        "optimizer.learning_rate=1",
        "transformer.dtype=float32",
        "data.workers=3",
    ]
    assert changed_fields(stored, configs.override(recipe, allowed)) == []
    refused = ["seed=1", "train.batch=128", "data.buckets=480x480x81", "transformer.layers=3", "method=anyid"]
    changed = changed_fields(stored, configs.override(recipe, refused))
    assert changed == ["seed=0", "method=kaleido", "transformer.layers=40", "data.buckets=", "train.batch=256"]
    assert configs.override(configs.override(recipe, refused), changed[:3]).transformer.layers == 40
    del stored["seed"], stored["flow"]  # of an older version
    assert changed_fields(stored, recipe) == []
