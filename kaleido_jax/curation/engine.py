"""Runs a curation: Apache Beam over the stages, or a plain loop over the same functions.

First every clip goes through the stages and is written to the work folder; then shards are written. Both parts skip
what is there, so a run that was killed goes on where it was, and what comes out is the same bytes.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kaleido_jax.config import to_json
from kaleido_jax.curation import assemble
from kaleido_jax.curation.dataset import SPLITS, describe
from kaleido_jax.curation.readers import read
from kaleido_jax.curation.records import Clip, Source, stable_id
from kaleido_jax.curation.report import write_report
from kaleido_jax.curation.settings import Curation
from kaleido_jax.curation.stages import Stage, clip_id, counted, find_shots, read_clip, stages
from kaleido_jax.curation.store import Store, write_bytes
from kaleido_jax.errors import InputError, StorageError, UsageError

Shot = tuple[int, float, float]


@dataclass(frozen=True, kw_only=True)
class Runner:
    """Which of Beam's runners does the work: "direct" (this machine), or a name that Beam knows; `options` are Beam's.

    workers: processes of the direct runner.
    """

    name: str = "direct"
    workers: int = 1
    options: tuple[str, ...] = ()


def missing_clips(source: Source, store: Store, config: Curation) -> Iterator[tuple[Source, Shot]]:
    """The clips of a source that have not been through the stages; finds its shots where that is not done."""
    shots = store.read_shots(source.id)
    if shots is None:
        shots = find_shots(source, config)
        store.write_shots(source.id, shots)
    for shot in shots.clips:
        if not store.has_clip(clip_id(source, *shot[1:])):
            yield source, shot


def entries(source: Source, store: Store) -> list[assemble.Entry]:
    """The clips of a source that has been done, or the file itself where it gave none."""
    shots = store.read_shots(source.id)
    if shots is None:
        raise StorageError(f"{store.shots_path(source.id)} has gone while the curation ran; run it again.")
    if shots.dropped is not None:
        return [assemble.Entry(id=source.id, source=source, dropped=shots.dropped)]
    return [assemble.Entry(id=clip_id(source, begin, end)) for _, begin, end in shots.clips]


def curate(config: Curation, folder: Path, output: Path, runner: Runner | None = Runner()) -> dict[str, int]:
    """Curates what the configuration's reader finds in `folder` into `output`; returns the counters of this run.

    Args:
        runner: None does it in a plain loop, without Beam: for tests, and for measuring what Beam costs.

    Raises:
      UsageError, InputError: the configuration or the input cannot be used.
      StorageError: `output` cannot be written, or was made with another configuration.
    """
    output.mkdir(parents=True, exist_ok=True)
    sources = sorted(read(config, folder), key=lambda source: source.id)
    if not sources:
        raise InputError(f"{folder}: the reader {config.reader!r} finds no video there.")
    twice = next((one for one, other in zip(sources, sources[1:]) if one.id == other.id), None)
    if twice is not None:
        raise InputError(f"{folder}: {twice.path} is there twice; ids have to differ.")
    _check_configuration(config, output)
    store = Store(output)
    counters: dict[str, int] = {}
    engine = _Plain() if runner is None else _Beam(runner)
    engine.stages(sources, store, config, counters)
    _assemble(engine, sources, store, config, output)
    write_report(output)
    _remove_leftovers(output)
    return dict(sorted(counters.items()))


def _check_configuration(config: Curation, output: Path) -> None:
    """An output folder belongs to one configuration."""
    path, text = output / "curation.json", json.dumps(_described(config), indent=1, sort_keys=True) + "\n"
    if path.is_file() and path.read_text() != text:
        raise StorageError(f"{output} was curated with another configuration; choose another folder.")
    write_bytes(path, text.encode())


def _described(config: Curation) -> dict[str, Any]:
    models = {
        name: None if one is None else {"class": type(one).__name__, **to_json(one)}
        for name, one in vars(config.models).items()
    }
    return {**to_json(config), "models": models}


def _assemble(engine, sources, store: Store, config: Curation, output: Path) -> None:
    """Shards, audit table and descriptions, made in a folder of their own that takes its name when it is whole."""
    everything = [entry for source in sources for entry in entries(source, store)]
    fingerprint = stable_id(*sorted(f"{entry.id} {entry.dropped}" for entry in everything))
    final, folder = output / "dataset", output / "work" / f"dataset-{fingerprint}"
    marker = final / "fingerprint"
    if marker.is_file() and marker.read_text() == fingerprint:
        return
    folder.mkdir(parents=True, exist_ok=True)
    whole = assemble.gather((store.facts(entry.id) for entry in everything if entry.source is None), config)
    shards: dict[int, list[assemble.Entry]] = {number: [] for number in range(config.shards)}
    for entry in everything:
        shards[assemble.shard_of(entry.id, config.shards)].append(entry)
    results = engine.shards(shards, store, whole, config, folder)
    results = sorted(results, key=lambda result: result["number"])
    if not sum(result["pretrain"][0] for result in results):
        raise InputError(f"nothing is left of {len(sources)} videos; {output / 'work'} holds why, clip by clip.")
    describe(folder, {split: [tuple(result[split]) for result in results] for split in SPLITS})
    for result in results:
        (folder / f"shard-{result['number']:05d}.json").unlink()
    write_bytes(folder / "fingerprint", fingerprint.encode())
    if final.is_dir():  # of fewer or other sources
        old = output / "work" / "dataset-old"
        shutil.rmtree(old, ignore_errors=True)
        os.replace(final, old)
        shutil.rmtree(old)
    os.replace(folder, final)


def _remove_leftovers(output: Path) -> None:
    """Files that killed runs have begun; another process that writes one now would begin it again."""
    for path in output.rglob(".*.partial*"):
        path.unlink(missing_ok=True)


class _Plain:
    """A loop."""

    def stages(self, sources: Sequence[Source], store: Store, config: Curation, counters: dict[str, int]) -> None:
        steps = stages(config)
        for source in sources:
            for one, shot in missing_clips(source, store, config):
                clip = read_clip(one, shot, config)
                for stage in steps:
                    before, clip = clip, stage(clip)
                    for name in counted(before, clip, stage.name):
                        counters[name] = counters.get(name, 0) + 1
                store.write_clip(clip, config.frames.fps, config.frames.quality)

    def shards(self, shards, store, whole, config, folder) -> list[Mapping[str, Any]]:
        return [assemble.write_shard(store, number, group, whole, config, folder) for number, group in shards.items()]


class _Beam:
    """Apache Beam, by whichever of its runners."""

    def __init__(self, runner: Runner):
        try:
            import apache_beam  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError:
            raise UsageError(
                "Apache Beam is not installed; install the extra: pip install 'kaleido_jax[curation]'."
            ) from None
        self._beam, self._runner = apache_beam, runner

    def stages(self, sources: Sequence[Source], store: Store, config: Curation, counters: dict[str, int]) -> None:
        beam = self._beam

        def build(pipeline):
            clips = (
                pipeline
                | "sources" >> beam.Create(list(sources))
                | "spread sources" >> beam.Reshuffle()
                | "slicing" >> beam.FlatMap(missing_clips, store, config)
                | "decoding" >> beam.MapTuple(lambda source, shot: read_clip(source, shot, config))
            )
            for stage in stages(config):
                clips = clips | stage.name >> beam.Map(_counting, stage, beam.metrics.Metrics.counter)
            _ = clips | "writing" >> beam.Map(_write, store, config)

        self._run(build, counters)

    def shards(self, shards, store, whole, config, folder) -> list[Mapping[str, Any]]:
        beam = self._beam
        groups = list(shards.items())

        def build(pipeline):
            _ = (
                pipeline
                | "shards" >> beam.Create(groups)
                | "spread shards" >> beam.Reshuffle()
                | "write shards" >> beam.MapTuple(lambda n, group: _shard(store, n, group, whole, config, folder))
            )

        self._run(build, {})
        return [json.loads((folder / f"shard-{number:05d}.json").read_text()) for number, _ in groups]

    def _run(self, build: Callable[[Any], None], counters: dict[str, int]) -> None:
        from apache_beam.options.pipeline_options import PipelineOptions  # pyright: ignore[reportMissingImports]

        options, runner = list(self._runner.options), self._runner.name
        if runner == "direct":
            from apache_beam.runners.portability.fn_api_runner import FnApiRunner  # pyright: ignore[reportMissingImports]

            # The runner itself, because Beam's DirectRunner first looks for a program on the network.
            runner = FnApiRunner()
            if self._runner.workers > 1:
                options += ["--direct_running_mode=multi_processing"]
            options += [f"--direct_num_workers={self._runner.workers}"]
        pipeline = self._beam.Pipeline(runner=runner, options=PipelineOptions(options))
        build(pipeline)
        result = pipeline.run()
        result.wait_until_finish()
        for metric in result.metrics().query()["counters"]:
            if metric.key.metric.namespace == "curation":
                name = metric.key.metric.name
                counters[name] = counters.get(name, 0) + (metric.committed or metric.attempted or 0)


def _counting(clip: Clip, stage: Stage, counter: Callable) -> Clip:
    """The stage with its counters."""
    after = stage(clip)
    for name in counted(clip, after, stage.name):
        counter("curation", name).inc()
    return after


def _write(clip: Clip, store: Store, config: Curation) -> None:
    store.write_clip(clip, config.frames.fps, config.frames.quality)


def _shard(store: Store, number: int, group: Iterable[assemble.Entry], whole, config: Curation, folder: Path) -> int:
    assemble.write_shard(store, number, list(group), whole, config, folder)
    return number
