"""Ours -> published layout -> ours is bitwise, and the published layout is the same network."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from ddm_jax.config import resolve
from ddm_jax.errors import UserError
from ddm_jax.interop.files import open_published
from ddm_jax.interop.from_published import convert_params, write_workdir
from ddm_jax.interop.names import flatten
from ddm_jax.interop.release_configs import config_of_release, hub_config, vocabulary_rows
from ddm_jax.interop.releases import RELEASES
from ddm_jax.interop.to_published import published_tensors, write_release
from ddm_jax.parallel.layouts import dp
from ddm_jax.runs.run import open_run
from ddm_jax.settle import settle
from tests.interop.forwards import dit, gpt2, torch_dit
from tests.interop.oracle_files import letters
from tests.interop.runs import new_run


@pytest.mark.parametrize("name", RELEASES)
def test_round_trip_is_bitwise(name, tmp_path):
    """All but the rows that pad the vocabulary, which nothing reads."""
    pytest.importorskip("safetensors")
    run = new_run(name)
    write_release(name, run, tmp_path / "theirs", "a test")
    release = RELEASES[name]
    found = open_published(str(tmp_path / "theirs"), "ema", release.scheme.buffers)
    config = config_of_release(release, found.path)
    for field in ("width", "depth", "heads", "cond_width", "time", "norm_bias", "positions"):
        if run.config.model.time == "none" and field == "cond_width":
            continue
        assert getattr(config.model, field) == getattr(run.config.model, field)
    write_workdir(name, found, run.config, letters(32), tmp_path / "ours")
    back = open_run(tmp_path / "ours", layout=dp(jax.local_devices()[:1]))
    assert_same(name, run, back.params)
    record = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert len(record["converted"]["sha256"]) == 64
    assert release.hub[0] in (tmp_path / "ours" / "MODEL_CARD.md").read_text()


def assert_same(name, run, params):
    number = vocabulary_rows(RELEASES[name], run.config, run.tokenizer.vocab_size) + (
        name == "gpt2"
    )
    before, after = flatten(run.params), flatten(params)
    assert before.keys() == after.keys()
    for path, x in before.items():
        y = after[path]
        if path == "embed/embedding":
            x, y = x[:number], y[:number]
        elif path.startswith("head/"):
            x, y = x[..., :number], y[..., :number]
        np.testing.assert_array_equal(x, y, err_msg=path)


@pytest.mark.parametrize("which", ["ema", "last"])
@pytest.mark.parametrize("name", ["mdlm", "bd3lm", "duo"])
def test_lightning_checkpoint_is_bitwise(name, which, tmp_path):
    pytest.importorskip("torch", reason="torch is not installed (the extra torch)")
    run, path = new_run(name), tmp_path / "new" / "x.ckpt"
    assert write_release(name, run, path, "a test") == path.stat().st_size
    release = RELEASES[name]
    found = open_published(str(path), which, release.scheme.buffers)
    assert (found.step, found.weights) == (run.step, which)
    own = letters(32 + release.added_tokens)
    assert_same(name, run, convert_params(release, found.tensors, run.config, own))


def test_lightning_checkpoint_has_what_their_code_reads(tmp_path):
    """The averages in the order of a torch module's parameters, and the state of the loops."""
    torch = pytest.importorskip("torch", reason="torch is not installed (the extra torch)")
    run = new_run("mdlm")
    write_release("mdlm", run, tmp_path / "x.ckpt", "a test")
    read = torch.load(tmp_path / "x.ckpt", weights_only=True)
    network = torch_dit(torch, 33, 64, 2, 4, run.config.model.cond_width)
    holder = torch.nn.ModuleDict({"backbone": network})
    holder.load_state_dict(read["state_dict"], strict=True)
    shadow = read["ema"]["shadow_params"]
    assert read["ema"]["decay"] == run.config.optim.ema_decay
    assert len(shadow) == len(list(network.parameters()))
    for mine, theirs in zip(shadow, network.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert read["ema"]["num_updates"] == read["global_step"] == run.step
    loop = read["loops"]["fit_loop"]
    assert loop["epoch_progress"]["current"]["completed"] == 0
    assert loop["epoch_loop.batch_progress"]["current"]["completed"] == run.step


@pytest.mark.parametrize("name", RELEASES)
def test_published_layout_has_our_logits(name):
    """By a forward pass written for this test over the published names, in float64."""
    run = new_run(name)
    number = vocabulary_rows(RELEASES[name], run.config, run.tokenizer.vocab_size)
    arrays = published_tensors(name, jax.tree.map(np.asarray, run.params), run.config, number)
    tokens, sigma = _input(run)
    if name == "gpt2":
        want = gpt2(arrays, tokens, 4)
    else:
        want = dit(arrays, tokens, sigma if run.config.model.time == "adaln" else 0 * sigma, 4)
    said = _logits(run, run.params, attend="causal" if name == "gpt2" else None)
    vocab = run.tokenizer.vocab_size
    np.testing.assert_allclose(said, want[..., :vocab], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["sedd", "radd"])
def test_torch_module_loads_our_weights(name):
    torch = pytest.importorskip("torch", reason="torch is not installed (the extra torch)")
    run = new_run(name)
    number = vocabulary_rows(RELEASES[name], run.config, 32)
    params = jax.tree.map(lambda x: np.asarray(x) / 4, run.params)
    arrays = published_tensors(name, params, run.config, number)
    cond = run.config.model.cond_width if name == "sedd" else 0
    network = torch_dit(torch, number, 64, 2, 4, cond)
    network.load_state_dict({k: torch.tensor(v) for k, v in arrays.items()}, strict=True)
    tokens, sigma = _input(run)
    with torch.no_grad():
        want = network(torch.tensor(tokens), torch.tensor(sigma)).numpy()[..., :32]
    np.testing.assert_allclose(_logits(run, params), want, rtol=1e-5, atol=1e-5)


# what SEDD and RADD read of a config when they make their network and its noise
ASKED = ("tokens", "noise.type", "model.hidden_size", "model.n_heads", "model.n_blocks")
ASKED += ("model.dropout",)
OF_SEDD = ("graph.type", "model.cond_dim", "model.scale_by_sigma")


@pytest.mark.parametrize(
    ("name", "own"), [("sedd", OF_SEDD), ("radd", ("model.use_checkpoint", "model.dtype"))]
)
def test_config_states_what_their_code_asks_for(name, own):
    config = new_run(name).config
    stated = hub_config(name, config, 33)
    for key in (*ASKED, *own):
        section, _, last = key.rpartition(".")
        assert last in (stated[section] if section else stated), key
    assert stated["tokens"] == 32
    assert stated["model"]["hidden_size"] == config.model.width


def test_another_network_is_not_written(tmp_path):
    with pytest.raises(UserError, match=r"config.model.time=adaln or constant, the run none"):
        write_release("mdlm", new_run("radd"), tmp_path / "out", "a test")
    with pytest.raises(UserError, match=r"the code of radd does not read: give a folder"):
        write_release("radd", new_run("radd"), tmp_path / "out.ckpt", "a test")
    run = new_run("mdlm")
    model = dataclasses.replace(run.config.model, shift=True)
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, model=model))
    with pytest.raises(UserError, match=r"--to=mdlm has config.model.shift=False, the run True"):
        write_release("mdlm", run, tmp_path / "out", "a test")
    run = new_run("gpt2")
    head = {"bias": run.params["head"]["bias"] + 1}
    run = dataclasses.replace(run, params=run.params | {"head": head})
    with pytest.raises(UserError, match="head/bias is not 0"):
        write_release("gpt2", run, tmp_path / "out", "a test")
    assert not list(tmp_path.iterdir())


def test_learned_positions_must_be_enough():
    from configs.ar_tiny import get_config

    config = get_config()
    config.model.positions, config.model.max_length = "learned", config.data.length - 1
    with pytest.raises(UserError, match=r"config.data.length=\d+ is longer than config.model.max"):
        settle(resolve(config))


def _input(run):
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 32, (2, run.config.data.length))
    return tokens, np.float32([0.3, 1.7])


def _logits(run, params, **options):
    apply = functools.partial(run.network.apply, **options)
    return jax.jit(lambda *given: apply(*given).logits())(params, *_input(run))
