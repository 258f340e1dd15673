"""What `python -m ddm_jax.sample` says of bad flags, and of folders that hold no run."""

import dataclasses
import shutil
import sys

import pytest
from absl.testing import flagsaver

from ddm_jax import cli, run_flags, sample
from ddm_jax.errors import UserError
from ddm_jax.objectives import OBJECTIVES
from ddm_jax.runs.record import write_record
from ddm_jax.settle import fitting_samplers
from tests.letters import ROOT, assert_refused, config_of, contents

FITTING = ", ".join(fitting_samplers(OBJECTIVES["radd_t_dce"], "absorbing", "none"))
BAD_FLAGS = {
    "top_p too large": (["--top_p=1.5"], "--top_p=1.5", "above 0 and at most 1"),
    "top_p of zero": (["--top_p=0"], "--top_p=0"),
    "top_p that is no number": (["--top_p=nan"], "--top_p=nan"),
    "negative temperature": (["--temperature=-1"], "--temperature=-1.0", "at least 0"),
    "infinite temperature": (["--temperature=inf"], "--temperature=inf"),
    "negative top_k": (["--top_k=-1"], "--top_k=-1", "from 0"),
    "no steps": (["--steps=0"], "--steps=0", "from 1"),
    "too many steps": ([f"--steps={2**31}"], f"--steps={2**31}", "from 1"),
    "no samples": (["--num=0"], "--num=0", "from 1"),
    "no batch": (["--batch_size=0"], "--batch_size=0", "from 1"),
    "negative seed": (["--seed=-1"], "--seed=-1", "from 0"),
    "short length": (["--length=1"], "config.data.length=1", "at least 2"),
    "unknown sampler": (["--sampler=foo"], "sampler='foo'", FITTING),
    "sampler of other networks": (["--sampler=autoregressive"], "'autoregressive'", FITTING),
    "option without value": (["--option=foo"], "--option=foo", "name=value"),
    "unknown option": (["--option=foo=3"], "config.sampler.foo is unknown"),
    "option of another sampler": (["--option=gamma=1"], "config.sampler.gamma", "'event_driven'"),
    "word for a number": (["--sampler=entropy", "--option=gamma=x"], "--option=gamma=x", "number"),
    "option out of range": (
        ["--sampler=entropy", "--option=gamma=-1"],
        "config.sampler.gamma=-1.0",
        "at least 0",
    ),
    "unknown word for an option": (
        ["--sampler=remdm", "--option=strategy=x"],
        "config.sampler.strategy='x'",
        "cap, rescale",
    ),
    "option with its own flag": (["--option=steps=3"], "--option=steps=3", "own flags"),
    "long prompt": ([f"--prefix={'x' * 9}", f"--suffix={'y' * 9}"], "takes 18 tokens", "the 16"),
    "full prompt": ([f"--prefix={'x' * 8}", f"--suffix={'y' * 8}"], "nothing to draw"),
    "prompt that is not text": (["--prefix=\udcff"], r"'\udcff'"),
    "template with prefix": ([f"--template={ROOT}/LICENSE", "--prefix=b"], "template", "a prefix"),
    "template with suffix": ([f"--template={ROOT}/LICENSE", "--suffix=b"], "template", "a suffix"),
    "no template": (["--template=/no/such"], "--template=/no/such", "No such file"),
    "template without blank": ([f"--template={ROOT}/LICENSE"], "no blank"),
    "folder for a file": ([f"--out={ROOT}"], f"--out={ROOT}", "is a folder"),
    "file for a folder": ([f"--out={ROOT}/LICENSE/x"], "LICENSE/x cannot be written"),
}


@pytest.mark.parametrize("case", BAD_FLAGS)
def test_bad_flag_ends_in_one_sentence(letters_run, case):
    args, *parts = BAD_FLAGS[case]
    before = contents(letters_run)
    assert_refused([f"--workdir={letters_run}", *args], *parts)
    assert contents(letters_run) == before


def test_folder_that_is_no_run_ends_in_one_sentence(tmp_path, letters_set):
    assert_refused([], "--workdir is missing")
    assert_refused([f"--workdir={tmp_path}/nope"], "nope is not the folder of a run")
    assert_refused([f"--workdir={tmp_path}"], f"{tmp_path} is not the folder of a run")
    (tmp_path / "file").write_text("x")
    assert_refused([f"--workdir={tmp_path}/file"], "file is not the folder of a run")
    for content in ("{not json", "[]", "{}", '{"config": 3}', '{"config": {}, "data": {}}'):
        (tmp_path / "config.json").write_text(content)
        assert_refused([f"--workdir={tmp_path}"], "config.json is not the record of a run")
    write_record(tmp_path / "new", config_of(letters_set), letters_set)
    assert_refused([f"--workdir={tmp_path}/new"], "new/checkpoints has no checkpoint yet")


def test_prepared_set_that_is_gone_or_another_ends_in_one_sentence(tmp_path, letters_set):
    moved = dataclasses.replace(letters_set, folder=tmp_path / "set")
    write_record(tmp_path / "run", config_of(letters_set), moved)
    remedy = "run `python -m ddm_jax.prepare "
    assert_refused([f"--workdir={tmp_path}/run"], f"{tmp_path}/set, which is gone", remedy)
    shutil.copytree(letters_set.folder, tmp_path / "set")
    assert_refused([f"--workdir={tmp_path}/run"], "has no checkpoint yet")
    dataclasses.replace(letters_set.tokenizer, eos_id=0).save(tmp_path / "set")
    assert_refused([f"--workdir={tmp_path}/run"], f"tokenizer in {tmp_path}/set is not the one")


def test_network_that_knows_the_time_is_not_sampled_by_cached(tmp_path, letters_set):
    write_record(tmp_path, config_of(letters_set, objective__name="sedd_absorb"), letters_set)
    assert_refused(
        [f"--workdir={tmp_path}", "--sampler=cached"],
        "config.sampler.name='cached'",
        "config.objective.name='sedd_absorb'",
        "config.model.time='adaln'",
    )


@pytest.mark.parametrize(
    ("wanted", "text", "value"),
    [(int, "12", 12), (float, "1e-3", 1e-3), (str, "a=b", "a=b"), (bool, "False", False)],
)
def test_option_has_the_type_of_its_field(monkeypatch, wanted, text, value):
    monkeypatch.setattr(run_flags, "field_type", {"sampler.mine": wanted}.__getitem__)
    assert run_flags._parse_option(f"mine={text}") == ("mine", value)
    if wanted is not str:
        with pytest.raises(UserError, match=r"--option=mine=x has the wrong type: give .*\."):
            run_flags._parse_option("mine=x")


def test_mistake_ends_the_program_with_one_line(letters_run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sample", f"--workdir={letters_run}", "--top_p=3"])
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as ended:
        cli.run(sample.main, sample.define_flags)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: --top_p=3.0 is out of range: give a number above 0 and at most 1.\n"
