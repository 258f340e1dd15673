"""Collectives in the text of compiled programs, against bytes worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ddm_jax.costs import hlo
from ddm_jax.costs.collectives import find_collectives, moved_bytes, replica_groups

ADD = """%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}
"""
# one all-reduce of 1,024 bytes in a loop of 5 turns, as XLA for TPUs prints it: no trip count
LOOP = (
    "HloModule loop\n"
    + ADD
    + """
%condition (state.1: (s32[], f32[256])) -> pred[] {
  %five = s32[]{:T(128)} constant(5)
  %state.1 = (s32[]{:T(128)}, f32[256]{0:T(256)S(1)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%i.1, %five), direction=LT
}

%body (state.2: (s32[], f32[256])) -> (s32[], f32[256]) {
  %state.2 = (s32[]{:T(128)}, f32[256]{0:T(256)S(1)}) parameter(0)
  %i.2 = s32[]{:T(128)} get-tuple-element(%state.2), index=0
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%i.2, %one)
  %x.2 = f32[256]{0:T(256)S(1)} get-tuple-element(%state.2), index=1
  %total = f32[256]{0:T(256)S(1)} all-reduce(%x.2), ATTRIBUTES, metadata={op_name="jit(f)/psum"}
  ROOT %out = (s32[]{:T(128)}, f32[256]{0:T(256)S(1)}) tuple(%next, %total)
}

ENTRY %main (x: f32[256]) -> f32[256] {
  %x = f32[256]{0:T(256)S(1)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %start = (s32[]{:T(128)}, f32[256]{0:T(256)S(1)}) tuple(%zero, %x)
  %loop = (s32[]{:T(128)}, f32[256]{0:T(256)S(1)}) while(%start), condition=%condition, body=%body
  ROOT %result = f32[256]{0:T(256)S(1)} get-tuple-element(%loop), index=1
}
""".replace("ATTRIBUTES", "channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add")
)
ASYNC = """HloModule pair

ENTRY %main (x: bf16[2,128]) -> bf16[8,128] {
  %x = bf16[2,128]{1,0:T(8,128)(2,1)} parameter(0)
  %gather-start = (bf16[2,128], bf16[8,128]) all-gather-start(%x), replica_groups=[2,4]<=[8]
  ROOT %gather-done = bf16[8,128]{1,0:T(8,128)(2,1)} all-gather-done(%gather-start)
}
"""
SCATTER = (
    "HloModule scatter\n"
    + ADD
    + """
%fused (p: f32[64]) -> f32[16] {
  %p = f32[64]{0} parameter(0)
  %inner = f32[64]{0} all-reduce(%p), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
  %at = s32[] constant(0)
  ROOT %part = f32[16]{0} dynamic-slice(%inner, %at), dynamic_slice_sizes={16}
}

ENTRY %main (x: f32[64]) -> f32[16] {
  %x = f32[64]{0} parameter(0)
  ROOT %all-reduce-scatter.1 = f32[16]{0} fusion(%x), kind=kCustom, calls=%fused
}
"""
)


def test_a_collective_in_a_loop_counts_as_often_as_the_loop_turns():
    (one,) = find_collectives(hlo.parse(LOOP), 4)
    assert (one.kind, one.dtype, one.runs, one.size) == ("all-reduce", "f32", 5, 4)
    assert one.source == "jit(f)/psum"
    # 256 floats, of which a ring of 4 sends 3/4 twice
    assert one.moved == 2 * 1024 * 3 / 4
    assert moved_bytes([one]) == {"all-reduce": 5 * 1536}


def test_a_loop_that_does_not_start_at_zero_or_goes_by_two():
    later = LOOP.replace("%zero = s32[]{:T(128)} constant(0)", "%zero = s32[]{:T(128)} constant(1)")
    by_two = LOOP.replace("%one = s32[]{:T(128)} constant(1)", "%one = s32[]{:T(128)} constant(2)")
    assert find_collectives(hlo.parse(later), 4)[0].runs == 4
    assert find_collectives(hlo.parse(by_two), 4)[0].runs == 3


def test_a_loop_of_unknown_length_is_counted_and_takes_the_given_trip_count():
    text = LOOP.replace("direction=LT", "direction=NE")
    program = hlo.parse(text)
    assert program.unknown_loops == 1
    assert find_collectives(program, 4)[0].runs == 1
    assert find_collectives(hlo.parse(text, while_trip_count=7), 4)[0].runs == 7


def test_an_asynchronous_pair_counts_once():
    (one,) = find_collectives(hlo.parse(ASYNC), 8)
    # 512 bytes of each of four devices: the other three's come in
    assert (one.kind, one.size, one.moved) == ("all-gather", 4, 3 * 512)


@pytest.mark.parametrize("names", [("all-reduce-scatter.1", "fused"), ("f", "all-reduce-scatter")])
def test_a_fusion_named_all_reduce_scatter_is_a_reduce_scatter(names):
    fusion, computation = names
    text = SCATTER.replace("%all-reduce-scatter.1", f"%{fusion}").replace(
        "%fused", f"%{computation}"
    )
    (one,) = find_collectives(hlo.parse(text), 4)
    assert (one.kind, one.moved) == ("reduce-scatter", 256 * 3 / 4)


def test_a_gather_that_runs_beside_several_fusions_counts_once():
    first = """
%beside.1 (p: bf16[2,128]) -> bf16[8,128] {
  %p = bf16[2,128] parameter(0)
  ROOT %g = bf16[8,128] all-gather(%p), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}
}
"""
    text = f"""HloModule pieces
{first}{first.replace("beside.1", "beside.2")}
ENTRY %main (x: bf16[2,128]) -> bf16[8,128] {{
  %x = bf16[2,128] parameter(0)
  %one = bf16[8,128] fusion(%x), kind=kCustom, calls=%beside.1
  ROOT %two = bf16[8,128] fusion(%x), kind=kCustom, calls=%beside.2
}}
"""
    (one,) = find_collectives(hlo.parse(text), 8)
    assert (one.kind, one.runs, one.moved) == ("all-gather", 1, 3 * 512)


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,2},{1,3}}", ((0, 2), (1, 3))),
        ("replica_groups={}", ((0, 1, 2, 3),)),
        ("replica_groups=[2,2]<=[4]", ((0, 1), (2, 3))),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}", ((0, 1), (2, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", ((0, 1, 2, 3),)),
        ("replica_groups=mesh['a'=4] {'a':(1)2}", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}", ((0, 1), (2, 3))),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=(3,1,2,0) {'b'}", ((3, 1), (2, 0))),
        ("source_target_pairs={{0,1},{1,0}}", ((0, 1), (1, 0))),
    ],
)
def test_replica_groups_in_every_notation(text, groups):
    assert replica_groups(f", channel_id=1, {text}, metadata={{}}", 4) == groups


def test_unknown_replica_groups_are_refused():
    with pytest.raises(hlo.HloError, match="unknown notation"):
        replica_groups("replica_groups=elsewhere", 4)


def compiled(function, specs, out, *shapes):
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ("x", "y"))
    mapped = jax.jit(jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out))
    args = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
        for shape, spec in zip(shapes, specs, strict=True)
    ]
    return find_collectives(hlo.parse(mapped.lower(*args).compile().as_text()), 8)


def test_a_real_program_has_the_collectives_that_it_was_written_with():
    def step(a, b):
        def turn(carry, _):
            return carry + jax.lax.psum(a * carry.sum(), "x").sum(), None

        total, _ = jax.lax.scan(turn, jnp.zeros((), jnp.float32), None, length=3)
        parts = jax.lax.psum_scatter(b, "y", scatter_dimension=0, tiled=True)
        whole = jax.lax.all_gather(a, "x", tiled=True)
        moved = jax.lax.ppermute(b, "x", [(0, 1), (1, 2), (2, 3), (3, 0)])
        return (total + whole.sum() + moved.sum() + parts.sum()).reshape(1, 1)

    found = compiled(step, (P("x", None), P(None, "y")), P("x", "y"), (32, 16), (8, 64))
    by_kind = {one.kind: one for one in found}
    # a: 8 x 16 floats on a device; b: 8 x 32
    assert by_kind["all-reduce"].runs == 3
    assert by_kind["all-reduce"].moved == 2 * 512 * 3 / 4
    assert by_kind["all-gather"].moved == 512 * 3
    assert by_kind["collective-permute"].moved == 1024
    assert by_kind["reduce-scatter"].moved == 1024 / 2
    assert set(by_kind["all-reduce"].groups) == {(0, 2, 4, 6), (1, 3, 5, 7)}
    assert set(by_kind["reduce-scatter"].groups) == {(0, 1), (2, 3), (4, 5), (6, 7)}
