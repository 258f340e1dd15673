"""FLOPs against the closed form and XLA's own count; network and memory times by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ddm_jax.aot import estimate
from ddm_jax.aot import job as aot_job
from ddm_jax.config import Config, LayoutConfig, ModelConfig, ObjectiveConfig, TrainConfig
from ddm_jax.costs import flops, hlo
from ddm_jax.costs.chips import CHIPS, Chip
from ddm_jax.costs.collectives import Collective
from ddm_jax.costs.roofline import Place, Roofline, hbm_traffic, network_seconds, roofline
from ddm_jax.models.network import padded_vocab
from ddm_jax.parallel.layouts import make_layout
from ddm_jax.settle import settle

VOCAB, LENGTH, BATCH = 1000, 128, 8
MODEL = ModelConfig(width=256, depth=3, heads=4, attention="plain")
CHIP = Chip(flops=100, hbm_bandwidth=10, link=1, dcn=0.1, ring=4, hbm=1)


def job(depth=3, **model):
    config = settle(
        Config(
            model=dataclasses.replace(MODEL, depth=depth, **model),
            objective=ObjectiveConfig(name="radd_lambda_dce"),
            train=TrainConfig(batch_size=BATCH),
        )
    )
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, length=LENGTH))
    layout = make_layout(LayoutConfig("dp"), jax.devices()[:1])
    return aot_job.AotJob(config, layout, CHIPS["v5e"], VOCAB)


def parts(depth=3):
    """FLOPs of a forward pass: the layers' matmuls, attention, and the head."""
    width, tokens = MODEL.width, BATCH * LENGTH
    layers = 2 * depth * (4 + 2 * MODEL.mlp_ratio) * width**2 * tokens
    attention = 4 * depth * LENGTH * width * tokens
    head = 2 * width * padded_vocab(VOCAB) * tokens
    return layers, attention, head


def test_flops_of_a_step_are_three_times_2n_plus_4ltd():
    assert estimate.model_flops(job()) == estimate.step_flops(job()) == 3 * sum(parts())


def test_remat_does_the_layers_or_attention_once_more():
    layers, attention, _ = parts()
    # nothing reads what the MLP gives out again: half of its FLOPs, 8 of 24, are not repeated
    full = job(remat="full")
    model = estimate.model_flops(full)
    assert model == 3 * sum(parts())
    assert estimate.step_flops(full) - model == layers * 2 / 3 + attention


def test_splash_computes_the_scores_once_more():
    _, attention, _ = parts()
    splash = job(attention="splash")
    model, done = estimate.model_flops(splash), estimate.step_flops(splash)
    # its backward pass has five matmuls where the plain one has four, and the sum of o do before it
    assert done - model == attention / 2 + 2 * MODEL.depth * MODEL.width * BATCH * LENGTH


def test_flops_agree_with_xla_on_one_layer():
    # of more layers or chunks of the head XLA counts a single one, and adds what is not a matmul
    one = job(depth=1)
    program = aot_job.make_aot_program(one)
    chunks = estimate.head_chunks(one, BATCH * LENGTH)
    assert flops.count(program.jitted, *program.args, while_trip_count=chunks) == 3 * sum(
        parts(depth=1)
    )
    counted = flops.count(program.jitted, *program.args)
    xla = program.jitted.lower(*program.args).cost_analysis()["flops"]
    assert counted < xla < 1.06 * counted


def test_loops_and_branches_are_counted_as_they_run():
    def f(x, n):
        y, _ = jax.lax.scan(lambda c, _: (c @ x, None), x, None, length=5)
        y = jax.lax.fori_loop(0, n, lambda _, y: y @ x, y)
        return jax.lax.cond(y[0, 0] > 0, lambda z: z @ z @ z, lambda z: z @ z, y)

    args = jax.ShapeDtypeStruct((4, 4), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    assert flops.count(f, *args, while_trip_count=3) == (5 + 3 + 1) * 2 * 4**3


def test_a_split_over_some_axes_is_done_by_each_of_their_devices():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ("x", "y"))
    for axes, devices in (({"x"}, 4), ({"x", "y"}, 8)):
        f = jax.shard_map(
            lambda x: x @ x,
            mesh=mesh,
            in_specs=P(),
            out_specs=P(),
            axis_names=axes,
            check_vma=False,
        )
        assert flops.count(f, jax.ShapeDtypeStruct((4, 4), jnp.float32)) == devices * 2 * 4**3


def collective(kind, nbytes, groups, runs=1):
    return Collective(kind, "f32", nbytes, groups, runs, "")


GRID = [Place(0, (x, y, 0)) for x in range(4) for y in range(2)]  # a ring of 4, a line of 2
ALL = (tuple(range(8)),)


def test_a_ring_moves_both_ways_and_a_line_one_way():
    ring = ((0, 2, 4, 6), (1, 3, 5, 7))
    line = ((0, 1), (2, 3), (4, 5), (6, 7))
    seconds = functools.partial(network_seconds, places=GRID, chip=CHIP)
    assert seconds([collective("all-gather", 10, ring)]) == pytest.approx(30 / 2)
    assert seconds([collective("all-gather", 10, line)]) == pytest.approx(10 / 1)
    # over all of them: both dimensions at once
    assert seconds([collective("all-reduce", 80, ALL, runs=2)]) == pytest.approx(2 * 140 / 3)


def test_permutations_that_go_opposite_ways_overlap():
    there, back = ((0, 2), (2, 4)), ((2, 0), (4, 2))
    found = [collective("collective-permute", 5, pairs, runs=3) for pairs in (there, back)]
    assert network_seconds(found, GRID, CHIP) == pytest.approx(15)


def test_an_all_reduce_over_slices_sends_a_share_over_the_data_centre():
    two = [Place(s, (x, 0, 0)) for s in range(2) for x in range(4)]
    # 80 bytes: within a slice 2 x 80 x 3/4 over a ring; between them 2 x 20 x 1/2 a chip
    expected = 120 / 2 + 20 / 0.1
    found = [collective("all-reduce", 80, ALL)]
    assert network_seconds(found, two, CHIP) == pytest.approx(expected)
    # without neighbours in the slice everything crosses
    one = [Place(s, (0, 0, 0)) for s in range(2)]
    found = [collective("all-reduce", 80, ((0, 1),))]
    assert network_seconds(found, one, CHIP) == pytest.approx(80 / 0.1)


def test_the_longest_of_the_three_is_the_bound():
    assert Roofline(3, 2, 1) == roofline(
        300, 20, [collective("all-gather", 1, ((0, 1),))], GRID, CHIP
    )
    assert Roofline(3, 2, 1).serial == 4
    assert Roofline(3, 2, 1).overlapped == 3
    assert Roofline(1, 2, 5).bound == "network"


def test_the_cores_of_a_chip_share_its_peak():
    two = dataclasses.replace(CHIP, devices=2)
    assert roofline(300, 20, [], GRID, two) == Roofline(6, 4, 0)


TEXT = """HloModule traffic

%slicing (p: f32[10,64], q: s32[], r: f32[10,64]) -> (f32[64], f32[10,64]) {
  %p = f32[10,64]{1,0} parameter(0)
  %q = s32[] parameter(1)
  %r = f32[10,64]{1,0} parameter(2)
  %one = f32[1,64]{1,0} dynamic-slice(%p, %q), dynamic_slice_sizes={1,64}
  %flat = f32[64]{0} bitcast(%one)
  %new = f32[10,64]{1,0} dynamic-update-slice(%r, %one, %q)
  ROOT %both = (f32[64]{0}, f32[10,64]{1,0}) tuple(%flat, %new)
}

ENTRY %main (x: f32[10,64], i: s32[]) -> f32[64] {
  %x = f32[10,64]{1,0} parameter(0)
  %i = s32[]{:S(2)} parameter(1)
  %near = f32[10,64]{1,0:S(1)} copy(%x)
  %made = (f32[64]{0}, f32[10,64]{1,0}) fusion(%x, %i, %near), kind=kLoop, calls=%slicing
  %y = f32[64]{0} get-tuple-element(%made), index=0
  ROOT %z = f32[64]{0} add(%y, %y)
}
"""


def test_traffic_leaves_out_near_memory_and_counts_slices_as_slices():
    copy = 10 * 64 * 4  # read; what it writes stays near
    fusion = 256 + 256 + 256  # one row read, one given out, one written into the other array
    add = 3 * 256
    assert hbm_traffic(hlo.parse(TEXT)) == copy + fusion + add
