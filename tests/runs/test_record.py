"""A work directory belongs to one run, even one begun before a config field existed."""

import dataclasses
import json

import numpy as np
import pytest

from configs.radd_tiny import get_config
from ddm_jax.config import resolve
from ddm_jax.errors import UserError
from ddm_jax.runs.record import check_workdir, write_record
from ddm_jax.settle import settle
from ddm_jax.training.optimizer import learning_rate
from tests import commands
from tests.commands import RECIPE, assert_one_sentence


@pytest.fixture
def run(tmp_path):
    """run(*flags) -> Ended, in tmp_path/run unless the flags name another work directory."""
    return lambda *flags: commands.run("main", RECIPE, f"--workdir={tmp_path / 'run'}", *flags)


def written(folder, config):
    data = {"tokenizer": {"fingerprint": "t"}, "source_fingerprint": "s"}
    record = {"config": dataclasses.asdict(config), "data": data}
    del record["config"]["model"]["kind"], record["config"]["data"]["eos"]
    (folder / "config.json").write_text(json.dumps(record))


def test_a_record_without_newer_fields_has_their_defaults(tmp_path):
    config = settle(resolve(get_config()))
    written(tmp_path, config)
    assert check_workdir(tmp_path, config)
    for section, field, value in (("model", "kind", "prefix"), ("optim", "lr", 0.5)):
        changed = dataclasses.replace(getattr(config, section), **{field: value})
        with pytest.raises(UserError, match=rf"config.{section}.{field}=.*use another --workdir"):
            check_workdir(tmp_path, dataclasses.replace(config, **{section: changed}))


def test_run_with_plugins_is_named_where_they_are_missing(tmp_path):
    config = settle(resolve(get_config()))
    mine = dataclasses.replace(config.objective, name="mine")
    written(tmp_path, dataclasses.replace(config, objective=mine, plugins=("/there/mine.py",)))
    with pytest.raises(UserError, match=r"holds a run with config\.plugins=/there/mine\.py: give"):
        check_workdir(tmp_path, config)


def config_with(**fields):
    config = get_config()
    for name, value in fields.items():
        section, _, field = name.partition("__")
        config[section][field] = value
    return settle(resolve(config))


# the work directory is looked at before data, which is not there
NO_DATA = "--config.data.source=tfds:nonesuch"


def test_workdir_of_another_config_is_refused_and_kept(run, tmp_path, letters_set):
    workdir = tmp_path / "run"
    write_record(workdir, config_with(data__source="tfds:nonesuch", optim__lr=0.125), letters_set)
    before = (workdir / "config.json").read_bytes()
    ended = run(NO_DATA, "--config.optim.lr=0.5")
    assert_one_sentence(ended, str(workdir), "config.optim.lr=0.125, not 0.5", "another --workdir")
    assert (workdir / "config.json").read_bytes() == before


@pytest.mark.parametrize("content", [b"{not json", b"[]", b"3", b"{}", b'{"config": 3}', b"\xff"])
def test_workdir_whose_record_is_damaged_is_refused_and_kept(run, tmp_path, content):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_bytes(content)
    ended = run(NO_DATA)
    assert_one_sentence(ended, "run/config.json is not the record of a run", "another --workdir")
    assert (tmp_path / "run" / "config.json").read_bytes() == content


@pytest.mark.parametrize("workdir", ["file", "file/run"])
def test_workdir_that_cannot_be_written_is_named(run, tmp_path, workdir):
    (tmp_path / "file").write_text("mine")
    ended = run(NO_DATA, f"--workdir={tmp_path}/{workdir}")
    assert_one_sentence(
        ended, f"--workdir={tmp_path}/{workdir}", "Not a directory", "give a folder"
    )
    assert (tmp_path / "file").read_text() == "mine"


FREE = {"train__log_every": 7, "train__keep_last": 9, "eval__every": 3, "sampler__num": 1}


@pytest.mark.parametrize("name", FREE)
def test_what_no_number_depends_on_may_change(tmp_path, letters_set, name):
    write_record(tmp_path, config_with(), letters_set)
    write_record(tmp_path, config_with(**{name: FREE[name]}), letters_set)
    section, field = name.split("__")
    record = json.loads((tmp_path / "config.json").read_text())
    assert record["config"][section][field] == FREE[name]


FIXED = {"model__width": 256, "optim__b1": 0.5, "data__length": 48, "objective__name": "radd_ao"}


@pytest.mark.parametrize("name", FIXED)
def test_what_numbers_depend_on_may_not_change(tmp_path, letters_set, name):
    write_record(tmp_path, config_with(), letters_set)
    with pytest.raises(UserError, match=f"config.{name.replace('__', '.')}="):
        write_record(tmp_path, config_with(**{name: FIXED[name]}), letters_set)


@pytest.mark.parametrize("decay", ["constant", "inverse_sqrt", "cosine", "linear"])
def test_run_may_be_prolonged_where_its_learning_rates_stay(tmp_path, letters_set, decay):
    short, long = (config_with(optim__decay=decay, train__steps=steps) for steps in (300, 400))
    rates = [learning_rate(c.optim, c.train.steps)(np.arange(300)) for c in (short, long)]
    write_record(tmp_path, short, letters_set)
    if np.array_equal(*rates):
        write_record(tmp_path, long, letters_set)
        assert json.loads((tmp_path / "config.json").read_text())["config"]["train"]["steps"] == 400
        return
    with pytest.raises(UserError) as raised:
        write_record(tmp_path, long, letters_set)
    assert str(raised.value) == (
        f"{tmp_path} holds a run with config.train.steps=300, not 400: use another --workdir, and "
        f"--config.train.init_from={tmp_path} to start from its weights (only runs with "
        f"config.optim.decay=constant or inverse_sqrt can be prolonged, not {decay})."
    )


def test_workdir_of_a_run_on_other_text_is_refused(tmp_path, letters_set):
    write_record(tmp_path, config_with(), letters_set)
    other_text = dataclasses.replace(letters_set, source_fingerprint="0")
    other_ids = dataclasses.replace(letters_set.tokenizer, vocab_size=300)
    for other in (other_text, dataclasses.replace(letters_set, tokenizer=other_ids)):
        with pytest.raises(UserError, match="other text or another tokenizer"):
            write_record(tmp_path, config_with(), other)
