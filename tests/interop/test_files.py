"""The kinds of files, and what is said of one that does not fit."""

import hashlib
import json
import sys
import types

import jax
import numpy as np
import pytest

from ddm_jax.errors import UserError
from ddm_jax.interop.files import WithoutPrefixes, open_published
from ddm_jax.interop.from_published import convert_params
from ddm_jax.interop.names import DIT, flatten, params_from_published, unflatten
from ddm_jax.interop.release_configs import config_of_release, vocabulary_rows
from ddm_jax.interop.releases import RELEASES
from ddm_jax.interop.safetensors import INDEX_FILE
from ddm_jax.interop.to_published import published_tensors
from tests.interop.oracle_files import letters
from tests.interop.runs import new_run


@pytest.fixture(scope="module")
def given():
    """(run, published tensors) of a small SEDD."""
    run = new_run("sedd")
    number = vocabulary_rows(RELEASES["sedd"], run.config, 32)
    return run, published_tensors("sedd", jax.tree.map(np.asarray, run.params), run.config, number)


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
    found = open_published(str(where), which, DIT.buffers)
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
        open_published(str(path), "ema", DIT.buffers)


@pytest.fixture
def shards(given, tmp_path):
    """A folder with the tensors in two files, the index of which is changed as asked."""
    save_file = pytest.importorskip("safetensors.numpy").save_file
    names = sorted(given[1])
    parts = {"model-1.safetensors": names[:20], "model-2.safetensors": names[20:]}

    def written(index=(), **more):
        places = {name: file for file, part in parts.items() for name in part} | dict(index)
        (tmp_path / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": places}))
        for file, part in parts.items():
            part = part + more.get(file[:-12].replace("-", ""), [])
            save_file({name: given[1][name] for name in part}, tmp_path / file)
        return tmp_path

    return written


def test_tensors_in_several_files_are_read(given, shards, monkeypatch):
    folder = shards()
    found = open_published(str(folder), "ema", DIT.buffers)
    assert found.path == folder / INDEX_FILE
    assert found.tensors.keys() == given[1].keys()
    for name, x in given[1].items():
        np.testing.assert_array_equal(found.tensors[name], x)
    files = [INDEX_FILE, "model-1.safetensors", "model-2.safetensors"]
    whole = b"".join((folder / file).read_bytes() for file in files)
    assert found.sha256 == hashlib.sha256(whole).hexdigest()

    fetched = []

    def hf_hub_download(name, file):
        assert name == "OWNER/NAME"
        if not (folder / file).is_file():
            raise FileNotFoundError(file)
        fetched.append(file)
        return str(folder / file)

    hub = types.SimpleNamespace(hf_hub_download=hf_hub_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert open_published("OWNER/NAME", "ema", DIT.buffers).sha256 == found.sha256
    assert fetched == files


def test_files_unlike_their_index_are_refused(shards):
    def opened(**changes):
        return open_published(str(shards(**changes)), "ema", DIT.buffers)

    first, last = "blocks.0.adaLN_modulation.bias", "vocab_embed.embedding"
    with pytest.raises(UserError, match=rf"model-2.* has the tensor {first}, which .* states for"):
        opened(model2=[first])
    with pytest.raises(UserError, match=rf"model-2.* has the tensor {last}, .* model-1"):
        opened(index={last: "model-1.safetensors"})
    with pytest.raises(UserError, match=r"model-1\.safetensors has no tensor other"):
        opened(index={"other": "model-1.safetensors"})
    with pytest.raises(UserError, match=r"names model-3\.safetensors, which is not next to it"):
        opened(index={"other": "model-3.safetensors"})
    index = shards() / INDEX_FILE
    places = json.loads(index.read_text())["weight_map"]
    del places[last]
    index.write_text(json.dumps({"weight_map": places}))
    with pytest.raises(UserError, match=rf"has the tensor {last}, which .* does not name"):
        open_published(str(index), "ema", DIT.buffers)
    index.write_text("{}")
    with pytest.raises(UserError, match="is not an index of safetensors files"):
        open_published(str(index), "ema", DIT.buffers)


def test_one_tensor_by_two_names_is_refused(given):
    name = "vocab_embed.embedding"
    with pytest.raises(UserError, match=rf"the tensors {name} and module\.{name}, which are"):
        WithoutPrefixes(given[1] | {f"module.{name}": given[1][name]})


def test_what_is_no_checkpoint_is_said(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        open_published(str(tmp_path / "nothing"), "ema", DIT.buffers)
    with pytest.raises(UserError, match=r"has none of model\.safetensors"):
        open_published(str(tmp_path), "ema", DIT.buffers)
    pytest.importorskip("torch", reason="torch is not installed (the extra torch)")
    (tmp_path / "x.pth").write_bytes(b"no pickle")
    with pytest.raises(UserError, match="cannot be read by torch"):
        open_published(str(tmp_path / "x.pth"), "ema", DIT.buffers)


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
        convert_params(RELEASES["sedd"], broken(arrays, change), run.config, letters(32))


def test_every_parameter_of_ours_comes_from_a_tensor(given):
    """Each published tensor changes what it should, and nothing else."""
    run, arrays = given
    abstract = jax.eval_shape(run.network.init, jax.random.key(0))
    base = flatten(params_from_published(DIT, arrays, abstract, 33))
    marked = {k: np.full_like(v, np.nan) for k, v in arrays.items()}
    for path, x in flatten(params_from_published(DIT, marked, abstract, 33)).items():
        read = np.isnan(x)
        if path in ("embed/embedding", "head/bias"):
            read = read[:33]
        elif path == "head/kernel":
            read = read[:, :33]
        assert read.all(), path
        assert not np.isnan(base[path]).any()
    assert flatten(unflatten(base)).keys() == base.keys()


def test_gpt2_of_another_kind_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"activation_function": "relu"}')
    with pytest.raises(UserError, match="activation_function='relu'"):
        config_of_release(RELEASES["gpt2"], tmp_path / "model.safetensors")
