"""Plug-ins add rows to the tables, or are refused in one sentence; a run finds them again."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from configs.radd_tiny import get_config
from ddm_jax import plugins
from ddm_jax.config import Config, resolve
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.errors import UserError
from ddm_jax.experiment import make_parts
from ddm_jax.objectives import OBJECTIVES
from ddm_jax.objectives.signature import LossOutput, Objective
from ddm_jax.plugins import load_plugins
from ddm_jax.samplers import SAMPLERS
from ddm_jax.settle import settle
from ddm_jax.training.step import make_train_step
from tests import commands
from tests.letters import SETTINGS

EXAMPLE = Path(__file__).parents[1] / "examples" / "my_objective.py"
HEAD = """
from ddm_jax.config_fields import Option
from ddm_jax.objectives import OBJECTIVES as OURS, Objective
from ddm_jax.samplers import SAMPLERS as THEIRS
ar = OURS["ar"].loss
"""


@pytest.fixture(autouse=True)
def tables(monkeypatch):
    """The tables, modules and paths are as before after the test."""
    for table in (OBJECTIVES, SAMPLERS, SCHEDULES):
        for name in table:
            monkeypatch.setitem(table, name, table[name])
    before = [dict(table) for table in (OBJECTIVES, SAMPLERS, SCHEDULES)]
    modules = set(sys.modules)
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for table, rows in zip((OBJECTIVES, SAMPLERS, SCHEDULES), before, strict=True):
        table.clear()
        table.update(rows)
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def load(*names):
    return load_plugins(names, Config)


def write(path, text="OBJECTIVES = {'mine': Objective(ar)}\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEAD + text)
    return path


def test_file_or_module_of_the_current_folder_is_recorded_with_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path / "plug_a.py")
    more = "import plug_a\nSAMPLERS = {'drawn': THEIRS['cached']}\n"  # a neighbour
    other = write(tmp_path / "package" / "plug_b.py", more)
    (tmp_path / "package" / "__init__.py").touch()
    assert load("plug_a", "package.plug_b") == (str(file), str(other))
    assert OBJECTIVES["mine"].loss is OBJECTIVES["ar"].loss
    assert SAMPLERS["drawn"] is SAMPLERS["cached"]
    assert load("./plug_a.py,package/plug_b.py") == (str(file), str(other))
    assert sys.modules["package.plug_b"].plug_a is sys.modules["plug_a"]


def test_module_that_python_finds_elsewhere(tmp_path, monkeypatch):
    file = write(tmp_path / "installed" / "plug_c.py")
    package = write(
        tmp_path / "installed" / "plug_d" / "__init__.py", "SAMPLERS = {'d': THEIRS['cached']}\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "installed")
    assert load("plug_c", "plug_d") == (str(file), str(package))
    assert "plug_d.__init__" not in sys.modules  # it is run once


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("1 / 0", r"mine\.py, line 6 cannot be imported \(ZeroDivisionError: division by zero\)"),
        ("OBJECTIVES = OURS", "has no table of its own: define one of OBJECTIVES, SAMPLERS"),
        ("OBJECTIVES = {'ar': Objective(ar)}", r"OBJECTIVES\['ar'\] of .* is taken"),
        ("OBJECTIVES = {'x': ar}", r"OBJECTIVES\['x'\] of .* is not of the type Objective"),
        (
            "OBJECTIVES = {'x': Objective(ar, options=(Option('depth', 1),))}",
            "names the option 'depth', which config.objective does not have: use one of steps, ",
        ),
        (  # a field of the section that is not an option
            "OBJECTIVES = {'x': Objective(ar, options=(Option('length_weight', 1),))}",
            "names the option 'length_weight'",
        ),
    ],
)
def test_plugin_that_is_wrong_is_refused_and_adds_nothing(tmp_path, text, complaint):
    before = dict(OBJECTIVES)
    with pytest.raises(UserError, match=complaint) as raised:
        load(str(write(tmp_path / "mine.py", text)))
    assert "\n" not in str(raised.value)
    assert str(raised.value).endswith(".")
    assert before == OBJECTIVES


def test_plugin_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("nowhere", "no.where", "no/where.py", "."):
        with pytest.raises(UserError, match=f"config.plugins='{name}' is not found: give a .py"):
            load(name)


def test_file_with_the_name_of_another_module(tmp_path):
    with pytest.raises(UserError, match=r"json\.py has the name of another module, .*json"):
        load(str(write(tmp_path / "json.py")))


def test_config_loads_them_before_names_are_looked_up():
    config = get_config()
    config.plugins = (str(EXAMPLE),)
    config.objective.name = "flat_ce"
    settled = settle(resolve(config))
    assert settled.plugins == (str(EXAMPLE),)
    assert (settled.eval.estimator, settled.model.time) == ("radd_ao", "none")
    for wrong in ("mine.py", (1,)):
        values = ConfigDict(get_config().to_dict() | {"plugins": wrong})
        with pytest.raises(
            UserError, match=r"config\.plugins=.* has the wrong type: give a tuple of strings"
        ):
            resolve(values)


@pytest.mark.parametrize(
    ("metrics", "complaint"),
    [
        (("masked", "mine"), r"the metrics \(masked, mine\), and its row .* \(masked\)"),
        (("masked",), r"returns no bound, and its row .* estimates an upper bound: set estimates="),
    ],
)
def test_loss_that_is_not_what_its_row_says_is_refused(metrics, complaint):
    def loss(apply, params, batch, noise, process):
        return LossOutput(noise.u, None, dict.fromkeys(metrics, noise.u))

    config = settle(resolve(get_config()))
    process, _, network = make_parts(config, vocab_size=9)
    step = make_train_step(config, network, Objective(loss, metrics=("masked",)), process, None)
    batch = {"tokens": jnp.zeros((2, 24), int), "valid": jnp.ones((2, 24), bool)}

    def trace(params):
        return step(SimpleNamespace(params=params, step=0), batch)

    with pytest.raises(UserError, match=complaint):
        jax.eval_shape(trace, jax.eval_shape(network.init, jax.random.key(0)))


@pytest.mark.slow
def test_example_trains_samples_and_is_evaluated_from_another_folder(letters_set, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir(), there.mkdir()
    shutil.copy(EXAMPLE, here / "mine.py")
    fields = SETTINGS | {
        "data.source": letters_set.folder,
        "train.steps": 2,
        "objective.name": "flat_ce",
        "plugins": "mine",
    }
    flags = ["--config=radd_tiny", "--workdir=run", *commands.flags_of(fields), "--json"]
    done = commands.run("main", *flags, cwd=here, code=0)
    assert json.loads(done.stdout.splitlines()[-1])["estimates"] == "an upper bound"
    record = json.loads((here / "run" / "config.json").read_text())
    assert record["config"]["plugins"] == [str(here / "mine.py")]
    flags = ["--workdir=../here/run", "--num=8"]
    commands.run("sample", *flags, "--out=drawn.jsonl", cwd=there, code=0)
    assert len((there / "drawn.jsonl").read_text().splitlines()) == 8
    done = commands.run("evaluate", *flags, "--draws=2", "--json", cwd=there, code=0)
    assert json.loads(done.stdout.splitlines()[-1])["objective"] == "flat_ce"
    (here / "mine.py").rename(here / "yours.py")
    commands.assert_one_sentence(
        commands.run("sample", *flags, cwd=there),
        f"../here/run/config.json: config.plugins='{here / 'mine.py'}' is not found",
    )
    # a resumed run takes the file of its config
    moved = [flag.replace("plugins=mine", "plugins=yours.py") for flag in commands.flags_of(fields)]
    done = commands.run("main", "--config=radd_tiny", "--workdir=run", *moved, cwd=here, code=0)
