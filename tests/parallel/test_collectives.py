"""Collectives read from compiled programs whose traffic is known."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from kaleido_jax.parallel import MeshConfig
from kaleido_jax.parallel.collectives import _groups, traffic

P = PartitionSpec


def compiled(function, mesh, spec, out):
    mapped = functools.partial(jax.shard_map, mesh=mesh, in_specs=spec, out_specs=out, check_vma=False)
    return jax.jit(mapped(function)).lower(jnp.ones((16, 16))).compile().as_text()


def test_bytes_by_axis_with_loops_multiplied():
    mesh = MeshConfig(data=2, sequence=4).make()
    ring = [(i, (i + 1) % 4) for i in range(4)]

    def program(x):  # [4, 16] on a device: 256 bytes
        x, _ = jax.lax.scan(lambda x, _: (jax.lax.ppermute(x, "sequence", ring) * 2.0, None), x, length=5)
        x = jax.lax.all_to_all(x, "sequence", 1, 0, tiled=True)
        x = jax.lax.psum(x, "data")
        return jax.lax.all_gather(x, ("data", "sequence"))

    found = traffic(compiled(program, mesh, P("sequence", None), P()), mesh)
    assert found.bytes == {
        ("sequence", "collective-permute"): 5 * 256,
        ("sequence", "all-to-all"): 256 * 3 / 4,
        ("data", "all-reduce"): 2 * 256 / 2,
        ("data+sequence", "all-gather"): 256 * 7,
    }
    assert found.count["sequence", "collective-permute"] == 5
    assert found.along("sequence") == 5 * 256 + 192


def test_weights_are_gathered_along_fsdp_alone():
    mesh = MeshConfig(data=2, fsdp=4).make()
    place = lambda *names: jax.NamedSharding(mesh, P(*names))
    x = jax.ShapeDtypeStruct((8, 32), jnp.float32, sharding=place(("data", "fsdp"), None))
    kernel = jax.ShapeDtypeStruct((32, 64), jnp.float32, sharding=place(None, "fsdp"))
    multiply = jax.jit(jnp.dot, out_shardings=place(("data", "fsdp"), None))
    found = traffic(multiply.lower(x, kernel).compile().as_text(), mesh)
    assert found.bytes == {("fsdp", "all-gather"): 32 * 64 * 4 * 3 / 4}


def test_all_ways_to_write_groups():
    groups = lambda text: [list(group) for group in _groups(f"all-gather(%x), {text}, dimensions={{1}}", 8)]
    assert groups("replica_groups={{0,1},{2,3}}") == [[0, 1], [2, 3]]
    assert groups("source_target_pairs={{0,1},{1,0}}") == [[0, 1], [1, 0]]
    assert groups("replica_groups=[2,4]<=[8]") == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert groups("replica_groups=[4,2]<=[2,4]T(1,0)") == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert groups("replica_groups=mesh['a'=2,'b'=4] {'a'}") == [[0, 4], [1, 5], [2, 6], [3, 7]]
    by_columns = "replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}"
    assert groups(by_columns) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert groups("replica_groups=mesh['a'=8] {'a':(2)2}") == [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert groups("replica_groups={}") == [list(range(8))]


def test_loops_of_tpu_programs_are_counted_by_the_limit_of_their_condition():
    """The form in which the TPU compiler writes a scan of 40 rounds, abridged."""
    mesh = MeshConfig(fsdp=8).make()
    text = """HloModule step
%body.1 (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %gather = f32[64]{0:T(128)} all-gather(%x), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
}

%condition.1 (p: (s32[], f32[8])) -> pred[] {
  %constant.9 = s32[]{:T(128)} constant(40), metadata={op_name="while"}
  ROOT %lt = pred[]{:T(512)} compare(%counter, %constant.9), direction=LT
}

ENTRY %main.2 (a: f32[8]) -> f32[8] {
  %loop = (s32[], /*index=1*/f32[8]) while(%start), condition=%condition.1, body=%body.1
}
"""
    assert traffic(text, mesh).bytes == {("fsdp", "all-gather"): 40 * 64 * 4 * 7 / 8}
    with pytest.raises(ValueError, match=r"condition.1 has no known number of rounds"):
        traffic(text.replace("constant(40)", "parameter(1)"), mesh)
