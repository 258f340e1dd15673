"""The kinds of files, and what is said of one that does not fit."""

import jax
import numpy as np
import pytest

from ddm_jax.errors import UserError
from ddm_jax.interop.bring import weights
from ddm_jax.interop.files import open_published
from ddm_jax.interop.give import published
from ddm_jax.interop.names import DIT, flat, nested, params_from
from ddm_jax.interop.releases import RELEASES, rows, settled
from tests.interop.oracle_files import letters
from tests.interop.runs import new_run


@pytest.fixture
def given(tmp_path):
    """(run, published tensors) of a small SEDD."""
    run = new_run("sedd", tmp_path)
    number = rows(RELEASES["sedd"], run.config, 32)
    return run, published("sedd", jax.tree.map(np.asarray, run.params), run.config, number)


class Settings:
    """As the hyper-parameters in a Lightning checkpoint: of a class that need not be here."""

    def __init__(self):
        self.lr = 3e-4
        raise AssertionError("a checkpoint ran code")

    def __reduce__(self):
        return (Settings, ())


@pytest.mark.parametrize("which", ["ema", "last"])
@pytest.mark.parametrize("kind", ["lightning", "run", "bare"])
def test_torch_checkpoints(given, tmp_path, kind, which):
    torch = pytest.importorskip("torch", reason="torch is not installed (the extra torch)")
    _, arrays = given
    state = {k: torch.tensor(v) for k, v in arrays.items()}
    average = [x + 1 for name, x in state.items() if "inv_freq" not in name]
    ema = {"decay": 0.9999, "num_updates": 7, "shadow_params": average}
    folder = tmp_path / "run"
    (folder / "checkpoints-meta").mkdir(parents=True)
    path, where = folder / "checkpoints-meta" / "checkpoint.pth", folder
    if kind == "lightning":
        path = where = tmp_path / "last.ckpt"
        prefixed = {f"backbone.{k}": v for k, v in state.items()}
        settings = object.__new__(Settings)
        torch.save(
            {"state_dict": prefixed, "ema": ema, "global_step": 9, "hyper_parameters": settings},
            path,
        )
    elif kind == "run":
        torch.save({"model": state, "ema": ema, "optimizer": {}, "step": 9}, path)
    else:
        path = where = tmp_path / "model.bin"
        torch.save(state, path)
    found = open_published(str(where), which, DIT.derived)
    averaged = which == "ema" and kind != "bare"
    assert (found.path, found.step) == (path, 0 if kind == "bare" else 9)
    assert found.weights == ("" if kind == "bare" else which)
    for name, x in arrays.items():
        if name != "rotary_emb.inv_freq":
            np.testing.assert_array_equal(found.tensors[name], x + averaged)


def test_averages_that_do_not_fit_are_refused(given, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed (the extra torch)")
    state = {k: torch.tensor(v) for k, v in given[1].items()}
    path = tmp_path / "checkpoint.pth"
    ema = {"shadow_params": list(state.values())[:3]}
    torch.save({"model": state, "ema": ema, "step": 1}, path)
    with pytest.raises(UserError, match="has 3 averaged tensors for"):
        open_published(str(path), "ema", DIT.derived)


def test_what_is_no_checkpoint_is_said(tmp_path):
    with pytest.raises(UserError, match="is not there"):
        open_published(str(tmp_path / "nothing"), "ema", DIT.derived)
    with pytest.raises(UserError, match=r"has none of model\.safetensors"):
        open_published(str(tmp_path), "ema", DIT.derived)
    pytest.importorskip("torch", reason="torch is not installed (the extra torch)")
    (tmp_path / "x.pth").write_bytes(b"no pickle")
    with pytest.raises(UserError, match="cannot be read by torch"):
        open_published(str(tmp_path / "x.pth"), "ema", DIT.derived)


def broken(arrays, change):
    arrays = dict(arrays)
    if change == "missing":
        del arrays["blocks.1.mlp.0.weight"]
    elif change == "extra":
        arrays["blocks.2.mlp.0.weight"] = arrays["blocks.1.mlp.0.weight"]
    elif change == "unknown":
        arrays["blocks.0.norm1.bias"] = arrays["blocks.0.norm1.weight"]
    elif change == "rows":
        arrays["vocab_embed.embedding"] = arrays["vocab_embed.embedding"][:-1]
    elif change == "cond":
        arrays["sigma_map.mlp.0.weight"] = arrays["sigma_map.mlp.0.weight"][:-1]
    else:
        arrays["rotary_emb.inv_freq"] = arrays["rotary_emb.inv_freq"][:-1]
    return arrays


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("missing", r"no tensor blocks\.1\.mlp\.0\.weight of shape \(256, 64\): look at config"),
        ("extra", r"tensor blocks\.2\.mlp\.0\.weight .*look at config\.model\.depth=2"),
        ("unknown", r"tensor blocks\.0\.norm1\.bias .*look at config\.model\.norm_bias"),
        ("rows", r"vocab_embed\.embedding has shape \(32, 64\), the network's \(33, 64\): .*token"),
        (
            "cond",
            r"shape \(31, 256\), the network's \(32, 256\): look at config\.model\.cond_width",
        ),
        ("heads", r"rotary_emb\.inv_freq .*look at config\.model\.heads"),
    ],
)
def test_mismatch_names_the_tensor_the_shapes_and_the_field(given, change, said):
    run, arrays = given
    with pytest.raises(UserError, match=said):
        weights(RELEASES["sedd"], broken(arrays, change), run.config, letters(32))


def test_every_parameter_of_ours_comes_from_a_tensor(given):
    """Each published tensor changes what it should, and nothing else."""
    run, arrays = given
    abstract = jax.eval_shape(run.network.init, jax.random.key(0))
    base = flat(params_from(DIT, arrays, abstract, 33))
    marked = {k: np.full_like(v, np.nan) for k, v in arrays.items()}
    for path, x in flat(params_from(DIT, marked, abstract, 33)).items():
        read = np.isnan(x)
        if path in ("embed/embedding", "head/bias"):
            read = read[:33]
        elif path == "head/kernel":
            read = read[:, :33]
        assert read.all(), path
        assert not np.isnan(base[path]).any()
    assert flat(nested(base)).keys() == base.keys()


def test_gpt2_of_another_kind_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"activation_function": "relu"}')
    with pytest.raises(UserError, match="activation_function='relu'"):
        settled(RELEASES["gpt2"], tmp_path / "model.safetensors")
