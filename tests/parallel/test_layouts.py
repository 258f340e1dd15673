"""A layout changes how a run is split over devices, not its numbers; and what devices send."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.config import LayoutConfig, ProcessConfig
from ddm_jax.costs import flops, hlo
from ddm_jax.costs.collectives import find_collectives
from ddm_jax.errors import UserError
from ddm_jax.models.head import chunk_rows
from ddm_jax.models.network import padded_vocab
from ddm_jax.parallel.layouts import LAYOUTS, dp, make_layout
from ddm_jax.parallel.placement import device_bytes, layout_summary, layout_table
from tests.parallel.runs import BATCH, STEPS, VOCAB, Parts, batches, compiled, make, start, train

# objective, layout, devices, micro-batches, axes if not the default ones. Every layout has a row on
# 8 devices, and some of several micro-batches and of fewer devices. Every objective is trained
# where the head, the positions or whole programs are split.
RUNS = [
    *(("radd_t_dce", layout, 8, 4 if layout == "hsdp" else 1) for layout in LAYOUTS),
    ("radd_t_dce", "pmap", 2, 2),
    ("radd_t_dce", "fsdp_tp", 4, 4),
    ("radd_t_dce", "zero1", 1, 2),
    ("sedd_uniform", "dp", 8, 4),
    ("sedd_uniform", "fsdp_tp", 8, 2),
    ("sedd_uniform", "sp", 8, 2),
    ("d3pm", "zero1", 8, 4),
    ("d3pm", "fsdp", 8, 2),
    ("d3pm", "pmap", 8, 2),
    ("d3pm", "tp", 8, 1),
    ("ar", "sp", 8, 4),
    ("ar", "tp", 8, 4, "model=2"),
    ("ar", "pmap", 8, 4),
]
# those of 4 micro-batches whose layout has replicas, whose gradients are summed; not pmap's
REPLICATED = [given for given in RUNS if given[2:4] == (8, 4) and given[1] != "pmap"]


@functools.cache
def built(*args: Any, **options: Any) -> tuple[Parts, Any]:
    """(the parts of `make`, their compiled step); compiled once for all tests of this file."""
    parts = make(*args, **options)
    return parts, compiled(parts)


@functools.cache
def first_state(name: str, **options: Any) -> Any:
    """The state that a run on one device starts from, on the host."""
    return jax.device_get(start(make(name, **options)))


def run(name: str, *args: Any, steps: int = STEPS, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """(losses, checksums) of a run."""
    parts, program = built(name, *args, **options)
    shardings = parts.layout.state_shardings(parts.state)
    state = jax.device_put(first_state(name, **options), shardings)
    losses, checksums, _ = train(parts, steps, program, state)
    return losses, checksums


@functools.cache
def reference(name: str, steps: int = STEPS, **model: Any) -> tuple[np.ndarray, np.ndarray]:
    """A run on one device."""
    losses, checksums = run(name, steps=steps, **model)
    assert len(set(losses)) == len(set(checksums)) == len(losses)
    return losses, checksums


def name_of(given: tuple) -> str:
    return "-".join(map(str, given))


@pytest.mark.parametrize("given", RUNS, ids=name_of)
@pytest.mark.slow
def test_every_layout_trains_on_the_same_numbers(given):
    losses, checksums = run(*given)
    expected = reference(given[0])
    np.testing.assert_array_equal(checksums, expected[1])
    np.testing.assert_allclose(losses, expected[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "layout", "parts"),
    [
        ("encoder_decoder", "fsdp", 2),
        ("encoder_decoder", "sp", 1),
        ("prefix", "fsdp_tp", 1),
    ],
)
@pytest.mark.slow
def test_pairs_train_on_the_same_numbers(kind, layout, parts):
    model = {"kind": kind, "max_length": 16}
    losses, checksums = run("rdm_absorb", layout, 8, parts, steps=4, **model)
    expected = reference("rdm_absorb", 4, **model)
    np.testing.assert_array_equal(checksums, expected[1])
    np.testing.assert_allclose(losses, expected[0], rtol=1e-5)


@pytest.mark.slow
def test_gaussian_d3pm_is_mapped_on_each_device():
    """Its loss takes sequences one by one, but brings nothing of the network to other devices."""
    gaussian = ProcessConfig("d3pm_gaussian", steps=20)  # its matrices are constants of the program
    losses, checksums = reference("d3pm", 2, process=gaussian)
    spread, same = run("d3pm", "dp", 8, steps=2, process=gaussian)
    np.testing.assert_array_equal(same, checksums)
    np.testing.assert_allclose(spread, losses, rtol=1e-5)
    _, program = built("d3pm", "dp", 8, process=gaussian)
    assert not collectives(program)["all-gather"]


def collectives(program) -> dict[str, list[tuple[bool, int]]]:
    """Kind -> (whether it is in a loop, elements) of each collective of the compiled step."""
    kinds = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
    found = {kind: [] for kind in kinds}
    for line in program.as_text().splitlines():
        if match := re.search(rf"= (.+?) ({'|'.join(kinds)})(?:-start)?\(", line):
            shapes = re.findall(r"\w+\[([\d,]*)\]", match[1])
            elements = sum(int(np.prod([int(n) for n in s.split(",") if n])) for s in shapes)
            found[match[2]].append(("/while/body" in line, elements))
    return found


def parameters(parts) -> int:
    return sum(x.size for x in jax.tree.leaves(parts.state.params))


@pytest.mark.parametrize("layout", ["dp", "pmap"])
@pytest.mark.slow
def test_data_parallelism_only_sums_gradients(layout):
    parts, program = built("radd_t_dce", layout, 8, 1)
    found = collectives(program)
    sums = found.pop("all-reduce")
    assert not any(found.values())
    # those of the blocks once a layer, within the loop, or of both layers at the end
    moved = sum(n * (2 if in_loop else 1) for in_loop, n in sums)
    assert moved - parameters(parts) in range(20)  # and some metrics


@pytest.mark.parametrize("given", REPLICATED, ids=name_of)
@pytest.mark.slow
def test_gradients_of_all_micro_batches_are_summed_over_replicas_once(given):
    parts, program = built(*given)
    mesh, replicas = parts.layout.mesh, parts.layout.replica_axes
    assert replicas
    places = np.indices(mesh.devices.shape).reshape(mesh.devices.ndim, -1)
    of_replica = places[[mesh.axis_names.index(axis) for axis in replicas]].T
    program = hlo.parse(program.as_text())
    across = [
        one
        for one in find_collectives(program, 8)
        if any(len({tuple(of_replica[i]) for i in group}) > 1 for group in one.groups)
    ]
    # but for how many chunks of logits the heads have to read, where they wait for each other
    assert {one.runs for one in across if one.dtype == "f32"} == {1}
    assert all(one.operand_bytes <= 8 for one in across if one.dtype != "f32")
    # what a device sums is what it holds of the gradients, and some metrics
    held = device_bytes(parts.state.params, parts.layout.param_shardings(parts.state.params))
    sums = [one for one in across if one.kind in ("all-reduce", "reduce-scatter")]
    assert sum(one.operand_bytes for one in sums) - held in range(4 * 20)


@pytest.mark.parametrize("layout", ["zero1", "fsdp_tp"])
@pytest.mark.slow
def test_micro_batches_take_the_memory_of_one(layout):
    def temporaries(parts: int, layout: str = layout) -> int:
        program = compiled(make("radd_t_dce", layout, 8, parts, batch_size=512))
        return program.memory_analysis().temp_size_in_bytes

    whole, in_parts = temporaries(1), temporaries(8)
    assert in_parts < whole / 3  # an eighth of the activations, and gradients


@pytest.mark.parametrize("batch_size", [BATCH, 2048])
@pytest.mark.slow
def test_fsdp_gathers_parameters_in_every_layer(batch_size):
    larger = {"batch_size": batch_size} if batch_size > BATCH else {}
    parts, program = built("radd_t_dce", "fsdp", 8, 1, **larger)
    found = collectives(program)
    block = sum(x.size for x in jax.tree.leaves(parts.state.params["blocks"]) if x.ndim > 2) // 2
    gathered = [n for in_loop, n in found["all-gather"] if in_loop]
    assert sum(gathered) == 2 * block  # one layer, forward and backward
    outside = [n for in_loop, n in found["all-gather"] if not in_loop]
    head = embedding = padded_vocab(VOCAB) * 32
    if batch_size == BATCH:
        # what is looked up is less than the embedding: every device looks up all ids, both ways
        assert sorted(outside) == [BATCH * 8, head]
        assert found["all-to-all"] == [(False, BATCH * 32)] * 2
    else:
        assert outside == [embedding, head]
        assert not found["all-to-all"]
    # each device sums up its own part of the gradient of the head
    assert found["reduce-scatter"] == [(False, head // 8)]
    assert all(n < head for in_loop, n in found["all-reduce"] if not in_loop) == (
        batch_size == BATCH
    )
    assert not found["collective-permute"]


@pytest.mark.slow
def test_zero1_gathers_updates_once():
    parts, program = built("radd_t_dce", "zero1", 8, 1)
    found = collectives(program)
    assert not any(in_loop for in_loop, _ in found["all-gather"])
    split = sum(x.size for x in jax.tree.leaves(parts.state.params) if x.ndim > 1 and x.size > 200)
    assert sum(n for _, n in found["all-gather"]) == split


@pytest.mark.slow
def test_tp_sums_activations_in_every_layer():
    _, program = built("radd_t_dce", "tp", 8, 1)
    found = collectives(program)
    in_loops = [n for in_loop, n in found.pop("all-reduce") if in_loop]
    hidden = BATCH * 8 * 32
    assert [n for n in in_loops if n >= hidden] == [hidden] * 4  # attention and MLP, both ways
    # the head, a chunk of positions at once: parts of a loss and the gradient of what is read
    chunk = chunk_rows(BATCH * 8, padded_vocab(VOCAB))
    of_head = [n for n in in_loops if n < hidden]
    assert max(of_head) == chunk * 32
    assert 3 * chunk <= sum(of_head) - chunk * 32 <= 6 * chunk
    assert not any(found.values())


@pytest.mark.slow
def test_sp_gathers_keys_and_values():
    _, program = built("radd_t_dce", "sp", 8, 1)
    found = collectives(program)
    keys = BATCH // 4 * 8 * 32
    gathered = [n for in_loop, n in found["all-gather"] if in_loop]
    assert gathered
    assert set(gathered) <= {keys, 2 * keys}
    assert not [n for in_loop, n in found["all-gather"] if not in_loop]


@pytest.mark.parametrize(("dtype", "wanted"), [("float32", "f32"), ("bfloat16", "bf16")])
@pytest.mark.slow
def test_weight_gradients_leave_their_matmuls_in_the_type_that_is_asked_for(dtype, wanted):
    parts = make("radd_t_dce", "dp", 8, compute_dtype="bfloat16", gradient_dtype=dtype)
    text = str(jax.make_jaxpr(parts.step)(parts.state, batches(1)[0]))
    # the MLP's kernel [32, 64], from activations [B, L, 32] and gradients [B, L, 64]
    made = re.findall(r":(\w+)\[32,64\] = dot_general", text)
    assert made
    assert set(made) == {wanted}
    parts = make("radd_t_dce", "pmap", 8, compute_dtype="bfloat16", gradient_dtype=dtype)
    each = {name: x[:4] for name, x in batches(1)[0].items()}
    text = str(jax.make_jaxpr(parts.step, axis_env=[("data", 8)])(parts.state, each))
    (summed,) = re.findall(r":(\w+)\[2,32,64\] = psum", text)
    assert summed == wanted


@pytest.mark.slow
def test_all_gradients_are_summed_in_float32_by_default():
    """Also those of norms, biases and embeddings, when the network computes in bfloat16."""
    program = compiled(make("radd_t_dce", "dp", 8, compute_dtype="bfloat16"))
    sums = re.findall(r"= (.+?) all-reduce(?:-start)?\(", program.as_text())
    assert sums
    assert not any("bf16" in types for types in sums)


@pytest.mark.slow
def test_remat_saves_memory_step_by_step():
    def work(remat: str) -> int:
        parts = make("radd_t_dce", remat=remat)
        return flops.count(parts.step, parts.state, batches(1)[0])

    none, dots, full = map(work, ("none", "dots", "full"))
    # the scores of attention are what "dots" does again, and "full" all matmuls of the blocks
    assert none < dots < full


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.slow
def test_devices_hold_what_the_table_says(layout):
    """And all layouts begin with the same numbers."""
    parts = make("radd_t_dce", layout, 8)
    state = start(parts)
    held = {device: 0 for device in jax.devices()[:8]}
    for leaf in jax.tree.leaves(state):
        for shard in leaf.addressable_shards:
            held[shard.device] += shard.data.nbytes
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6)
    jax.tree.map(close, state, first_state("radd_t_dce"))
    (each,) = set(held.values())
    assert each == device_bytes(parts.state, parts.layout.state_shardings(parts.state))
    whole = sum(x.nbytes for x in jax.tree.leaves(state))
    params = sum(x.nbytes for x in jax.tree.leaves(state.params))
    most = {
        "pmap": 1.0,
        "dp": 1.0,
        "sp": 1.0,
        "zero1": (params + (whole - params) / 8) / whole,
        "fsdp": 1 / 8,
        "fsdp_tp": 1 / 8,
        "tp": 1 / 8,
        "hsdp": 1 / 4,
    }[layout]
    # norms and biases stay whole, which count in so small a model
    assert most <= each / whole <= most + (0.05 if most < 1 else 0)
    shown = layout_table(parts.layout, parts.state)
    assert layout_summary(parts.layout, parts.state) in shown
    assert f"{each / 2**20:,.1f} of {whole / 2**20:,.1f} MiB" in shown
    assert len(re.findall(r"^blocks/", shown, re.M)) == 10


@pytest.mark.slow
def test_state_goes_from_one_layout_to_another():
    """Steps under fsdp_tp, then on one device, then under pmap: the losses of a run that stayed."""
    want, _ = reference("radd_t_dce")
    state, seen = None, []
    for k, layout in enumerate((("fsdp_tp", 8, 1), (), ("pmap", 2, 2))):
        parts, program = built("radd_t_dce", *layout)
        shardings = parts.layout.state_shardings(parts.state)
        state = jax.device_put(state, shardings) if state else start(parts)
        for batch in batches(9)[3 * k : 3 * k + 3]:
            state, metrics = program(state, parts.layout.put_train_batch(batch))
            seen.append(float(metrics["loss"]))
    np.testing.assert_allclose(seen, want[:9], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "axes", "devices", "sizes"),
    [
        ("dp", "", 8, {"data": 8}),
        ("tp", "", 8, {"data": 1, "model": 8}),
        ("tp", "", 4, {"data": 1, "model": 4}),
        ("tp", "model=2", 8, {"data": 4, "model": 2}),
        ("fsdp_tp", "", 8, {"fsdp": 4, "model": 2}),
        ("fsdp_tp", "fsdp=2", 8, {"fsdp": 2, "model": 4}),
        ("fsdp_tp", "", 1, {"fsdp": 1, "model": 1}),
        ("hsdp", "", 8, {"data": 2, "fsdp": 4}),
        ("hsdp", "fsdp=2", 8, {"data": 4, "fsdp": 2}),
        ("hsdp", "", 3, {"data": 1, "fsdp": 3}),
        ("sp", "seq=8", 8, {"data": 1, "seq": 8}),
    ],
)
def test_axes_follow_from_the_number_of_devices(name, axes, devices, sizes):
    layout = make_layout(LayoutConfig(name, axes), jax.devices()[:devices])
    assert dict(layout.mesh.shape) == sizes


@pytest.mark.parametrize(
    ("name", "axes", "message"),
    [
        ("ddp", "", "config.layout.name='ddp' is unknown: choose one of dp, fsdp"),
        ("fsdp", "model=2", "config.layout.axes='model=2' does not fit config.layout.name='fsdp'"),
        ("fsdp_tp", "fsdp=x", "config.layout.axes='fsdp=x'"),
        ("fsdp_tp", "model=0", "config.layout.axes='model=0'"),
        ("fsdp_tp", "model=3", "config.layout.axes='model=3' does not fit 8 devices"),
        ("dp", "data=4", "config.layout.axes='data=4' does not fit 8 devices"),
        ("hsdp", "data=2,fsdp=2", "config.layout.axes='data=2,fsdp=2' does not fit 8 devices"),
        ("tp", "model=16", "config.layout.axes='model=16' does not fit 8 devices"),
    ],
)
def test_axes_that_do_not_fit_are_refused(name, axes, message):
    with pytest.raises(UserError) as refused:
        make_layout(LayoutConfig(name, axes), jax.devices()[:8])
    assert message in str(refused.value)


def test_a_parameter_that_does_not_split_is_named():
    layout = make_layout(LayoutConfig("tp"), jax.devices()[:8])
    heads = {"blocks": {"qkv": {"kernel": jax.ShapeDtypeStruct((2, 48, 3, 6, 8), jnp.float32)}}}
    with pytest.raises(UserError) as refused:
        layout.param_shardings(heads)
    assert "blocks/qkv/kernel" in str(refused.value)
    assert "6 is not a multiple of model=8" in str(refused.value)
    assert "a divisor of 2" in str(refused.value)


def test_a_batch_that_does_not_split_is_refused():
    dp(jax.devices()[:8]).check_batch(16, "config.train.batch_size")
    with pytest.raises(UserError, match=r"train\.batch_size=12 does not split over 8 devices"):
        dp(jax.devices()[:8]).check_batch(12, "config.train.batch_size")
    make_layout(LayoutConfig("tp"), jax.devices()[:8]).check_batch(3, "config.train.batch_size")
