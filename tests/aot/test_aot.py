"""Ahead-of-time compilation: bad input ends in a sentence; real compiles where it can be."""

import dataclasses
import importlib.util
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from ddm_jax.aot import compiling, report
from ddm_jax.aot import job as aot_job
from ddm_jax.config import Config, LayoutConfig, ModelConfig, TrainConfig
from ddm_jax.costs.chips import CHIPS, GIB
from ddm_jax.costs.collectives import Collective
from ddm_jax.costs.roofline import Place, network_seconds
from ddm_jax.costs.topology import devices_of, places_of
from ddm_jax.errors import UserError
from ddm_jax.parallel.layouts import make_layout
from ddm_jax.settle import settle
from tests import commands

HAS_LIBTPU = importlib.util.find_spec("libtpu") is not None
needs_libtpu = pytest.mark.skipif(
    not HAS_LIBTPU, reason='compiles for TPUs: pip install "jax[tpu]"'
)
needs_plugin = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None,
    reason='compiles for GPUs: pip install "jax[cuda13]"',
)
TINY = ("--config=configs/radd_tiny.py", "--config.model.depth=2", "--config.train.batch_size=64")


def job(layout="dp", batch_size=64, microbatches=1, **model):
    config = settle(
        Config(
            model=ModelConfig(width=128, depth=2, heads=2, **model),
            train=TrainConfig(batch_size=batch_size, microbatches=microbatches),
        )
    )
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, length=128))
    return aot_job.AotJob(
        config, make_layout(LayoutConfig(layout), jax.devices()), CHIPS["v5e"], 1000
    )


def run(*flags):
    return commands.run("aot", *flags)


@pytest.mark.parametrize("name", ["h100", "h100:2x8", "v5e:", "v5e:4", "v5e:0x4", "v5e:4x4x4x4"])
def test_an_unknown_topology_ends_in_a_sentence(name):
    with pytest.raises(UserError, match=r"such as v5e:4x4 or .* h200:8; chips are v3, v4"):
        devices_of(name)


def test_an_unknown_chip_ends_in_a_sentence():
    with pytest.raises(UserError, match=r"'v9' is unknown: choose one of h100, h200, tpu7x, v3"):
        devices_of("v9:2x2")


@pytest.mark.parametrize(("name", "extra"), [("v5e:4x4", "tpu"), ("h200:8", "cuda13")])
def test_without_a_compiler_it_says_how_to_get_it(name, extra, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf'pip install "jax\[{extra}\]"'):
        devices_of(name)


def test_gpus_are_placed_by_node():
    devices = [SimpleNamespace(platform="gpu", coords=[n, 0, i]) for n in (0, 1) for i in (0, 1)]
    assert places_of(devices) == [Place(0, (0,)), Place(0, (1,)), Place(1, (0,)), Place(1, (1,))]


def test_gpus_of_a_node_have_all_of_nvlink_and_nodes_400_gbit_each():
    def seconds(nodes: int, gpus: int) -> float:
        group = tuple(range(nodes * gpus))
        one = Collective("all-reduce", "f32", 10**9, (group,), 1, "")
        at = [Place(node, (i,)) for node in range(nodes) for i in range(gpus)]
        return network_seconds([one], at, CHIPS["h100"])

    # 900 GB/s of NVLink are 450 in each direction
    assert seconds(1, 8) == pytest.approx(2e9 * 7 / 8 / 450e9)
    # within each node, and then an eighth of it over the network between the two
    assert seconds(2, 8) == pytest.approx(2e9 * 7 / 8 / 450e9 + 2e9 / 8 / 2 / 50e9)


def test_the_vocabulary_is_known_without_the_corpus():
    assert aot_job.vocab_size_of("gpt2") == 50_257
    assert aot_job.vocab_size_of("sentencepiece:2048") == 2048
    assert aot_job.vocab_size_of("bytes") == 257
    with pytest.raises(UserError):
        aot_job.vocab_size_of("words")


def test_a_batch_that_does_not_split_says_which_number_to_change():
    with pytest.raises(UserError, match=r"train\.microbatches=3 does not split"):
        aot_job.check_batch(job(batch_size=12, microbatches=4))
    aot_job.check_batch(job(batch_size=64, microbatches=4))


@pytest.mark.parametrize("most", [0, 1, 2, 3, 7, 8, 100])
@pytest.mark.parametrize("start", [1, 6, 64])
def test_the_largest_that_fits_is_found_wherever_it_starts(most, start):
    tried = []

    def fits(n):
        assert n >= 1
        assert n not in tried, "compiled twice"
        tried.append(n)
        return n <= most

    assert compiling.largest_fitting(fits, start) == most
    assert len(tried) <= 14


def test_search_tries_multiples_of_what_the_layout_and_the_microbatches_need(monkeypatch):
    def compile_job(job):
        size = job.batch_size
        return compiling.CompileResult(size <= 100, size * GIB, "", 0.0)

    monkeypatch.setattr(compiling, "compile_job", compile_job)
    found, trials = compiling.search_largest_batch(job(batch_size=64, microbatches=4))
    assert found.batch_size == 96  # 8 devices, 4 parts: multiples of 32
    assert sorted(trials) == [64, 96, 128]
    assert trials[128].needed_bytes == 128 * GIB


def test_out_of_memory_is_read():
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (55.65G) exceeds available HBM (15.75G)."
    )
    assert compiling.bytes_needed(message, argument_bytes=2 * GIB) == pytest.approx(57.65 * GIB)
    other = "Ran out of memory in memory space hbm. Used 512.50M of 15.75G hbm."
    assert compiling.bytes_needed(other, argument_bytes=GIB) == pytest.approx(512.5 * 2**20)


def test_out_of_memory_is_an_answer(monkeypatch):
    class Lowered:
        def compile(self):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Used 20.00G of 15.75G hbm.")

    class Jitted:
        def lower(self, *_):
            return Lowered()

    monkeypatch.setattr(
        compiling, "make_aot_program", lambda job: aot_job.AotProgram(Jitted(), (), 0)
    )
    result = compiling.compile_job(job())
    assert not result.fits
    assert compiling.verdict(result, CHIPS["v5e"]) == (
        "does not fit: needs 20.00 of 15.75 GiB per device"
    )


@pytest.mark.parametrize("layout", ["pmap", "fsdp"])
def test_the_program_is_the_train_step_of_the_layout(layout):
    # lowers Pallas kernels too, on any machine; jax.pmap lowers only for its own devices
    program = aot_job.make_aot_program(job(layout, attention="splash"))
    batch = program.args[1]
    assert batch["tokens"].shape == ((8, 8, 128) if layout == "pmap" else (64, 128))
    if layout == "fsdp":
        traced = program.jitted.trace(*program.args)
        text = traced.lower(lowering_platforms=("tpu",)).as_text()
        assert text.count("tpu_custom_call") >= 2
        assert "sdy.sharding" in text


def test_the_batch_of_pairs_has_both_sides():
    batch = aot_job.abstract_batch(Config(model=ModelConfig(kind="prefix")), 4)
    assert {name: x.shape for name, x in batch.items()} == {
        "tokens": (4, 1024),
        "valid": (4, 1024),
        "seen": (4, 1024),
        "source": (4, 256),
        "source_valid": (4, 256),
    }
    assert batch["tokens"].dtype == jnp.int32


def test_the_sampler_is_lowered_too():
    sampling = dataclasses.replace(job("fsdp"), sampling=True)
    program = aot_job.make_aot_program(sampling)
    assert program.args[2].shape == (64, 128)  # config.eval.batch_size
    assert "while" in program.jitted.lower(*program.args).as_text()


@pytest.mark.slow
def test_flags_are_checked_before_anything_is_compiled():
    done = run(*TINY)
    assert done.code == 2
    assert "--topology is missing" in done.stderr.splitlines()[-1]


def test_the_report_as_text_and_as_one_flat_json_object():
    target = report.CompileTarget("v5e:2x4", 1, 8, "train", "0.10", "libtpu 1")
    settings = report.JobSettings("ar", "auto", "none", "fsdp", {"fsdp": 8}, 64, 1)
    memory = report.MemoryFit(True, 1.5, 15.75, 3.0)
    total = report.CollectiveTotal("all-reduce", "f32", 8, 1, "jit(step)/psum", 2e6, 3)
    traffic = report.ProgramTraffic(0, 1, 4, 2e6, {"all-reduce": 2e6}, (total,), 10**9)
    step = report.StepEstimate(1e12, 2e12, 0.02, 0.01, 0.005, "compute", 0.025, 0.02, 1e6, 0.4, 0.5)
    full = report.AotReport(target, settings, memory, traffic, step)
    result = json.loads(json.dumps(full.to_json()))
    assert (result["topology"], result["mesh"], result["step_s"]) == ("v5e:2x4", {"fsdp": 8}, 0.025)
    assert result["largest_collectives"][0]["group"] == 8
    text = report.report_text(full)
    assert text.endswith("\n  fits: 1.50 of 15.75 GiB per device")
    assert "2.0 MB  all-reduce of f32 over 8 devices, 3 times: jit(step)/psum" in text
    assert "step: 25.0 ms" in text
    too_large = dataclasses.replace(memory, fits=False)
    short = report.AotReport(target, settings, too_large)
    assert "step_s" not in short.to_json()
    assert "does not fit: needs 1.50 of 15.75 GiB per device" in report.report_text(short)


@needs_libtpu
def test_a_small_step_compiles_for_a_tpu():
    done = run(*TINY, "--topology=v5e:2x4", "--layout=fsdp", "--config.data.length=128", "--json")
    assert done.code == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["fits"]
    assert result["devices"] == 8
    assert 0 < result["need_gib"] < result["available_gib"] == 15.75
    assert result["unknown_turns"] >= 1
    # parameters are gathered, by themselves or as a ring of permutations
    assert {"all-gather", "collective-permute"} & set(result["collectives"])
    assert result["step_s"] >= result["overlapped_step_s"] > 0
    assert 0 < result["mfu"] < 1


@needs_plugin
def test_a_small_step_compiles_for_gpus():
    flags = "--topology=h200:4", "--slices=2", "--layout=hsdp", "--axes=data=2,fsdp=4", "--json"
    done = run(*TINY, *flags)
    assert done.code == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["fits"]
    assert result["devices"] == 8
    assert 0 < result["need_gib"] < 1 < result["available_gib"]
    assert {"all-gather", "all-reduce"} <= set(result["collectives"])
    # parameters are gathered within a node, gradients are summed between the two
    strides = {one["kind"]: one["stride"] for one in result["largest_collectives"]}
    assert strides["all-gather"] == 1
    assert 4 in {one["stride"] for one in result["largest_collectives"] if one["group"] == 2}
    assert result["step_s"] >= result["overlapped_step_s"] > 0
    assert 0 < result["mfu"] < 1


@needs_plugin
def test_cudnn_cannot_be_compiled_without_a_gpu():
    done = run(*TINY, "--topology=h200:4", "--config.model.attention=cudnn")
    assert done.code == 2
    assert "use auto" in done.stderr.splitlines()[-1]


@needs_libtpu
@pytest.mark.parametrize(("flags", "message"), [
    (("--topology=v5e:3x5",), "is not a slice of v5e"),
    (("--topology=v5e:2x4", "--layout=ddp"), "config.layout.name='ddp' is unknown"),
    (("--topology=v5e:2x4", "--layout=tp", "--axes=model=3"), "must multiply to 8"),
])  # fmt: skip
def test_mistakes_about_the_machine_end_in_a_sentence(flags, message):
    done = run(*TINY, *flags)
    assert done.code == 2
    assert message in done.stderr.splitlines()[-1]
