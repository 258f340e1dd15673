"""Which cells there are, what they run, and when they are finished."""

import json
import re

import pytest

from configs.compare_tiny import get_config
from ddm_jax.compare import planning
from ddm_jax.compare.cells import Grid, RecipeFlags, make_cells, read_cell, write_cell
from ddm_jax.errors import UserError
from tests.compare.made import make_run

RECIPE = RecipeFlags("configs/compare_tiny.py", {"train.batch_size": 16}, devices=8)


def cells_of(workdir, objectives=("ar",), layouts=("dp", "tp"), seeds=(0, 1), steps=20):
    config = get_config()
    return make_cells(config, RECIPE, Grid(objectives, layouts, seeds, steps), workdir)


def done(cell, **changes):
    """What ddm_jax.main leaves behind."""
    cell.folder.parent.mkdir(parents=True, exist_ok=True)
    make_run(cell.folder, cell.objective, cell.layout, cell.seed, **changes)
    (cell.folder / "checkpoints" / "20").mkdir(parents=True)


def test_cells_are_all_combinations_in_folders_of_their_own(tmp_path):
    cells = cells_of(tmp_path, ("ar", "gidd"), seeds=(3, 4))
    assert len({cell.folder for cell in cells}) == len(cells) == 8
    assert {(c.objective, c.layout, c.seed) for c in cells} == {
        (o, x, s) for o in ("ar", "gidd") for x in ("dp", "tp") for s in (3, 4)
    }
    for cell in cells:
        assert cell.config.objective.name == cell.objective
        assert cell.config.layout.name == cell.layout
        assert (cell.config.seed, cell.config.train.steps) == (cell.seed, 20)


def test_the_command_is_an_ordinary_run(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--a=1 --xla_force_host_platform_device_count=2")
    cell = cells_of(tmp_path)[1]
    assert cell.command[1:] == [
        "-m", "ddm_jax.main", "--config=configs/compare_tiny.py", "--config.train.batch_size=16",
        "--config.objective.name=ar", "--config.layout.name=tp", "--config.seed=0",
        "--config.train.steps=20", f"--workdir={tmp_path}/cells/ar-tp-0", "--json",
    ]  # fmt: skip
    flags = "--a=1 --xla_force_host_platform_device_count=8"
    assert RECIPE.environment() == {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    assert cell.shell_command.startswith(
        f"XLA_FLAGS='{flags}' JAX_PLATFORMS=cpu python -m ddm_jax.main "
    )


def test_an_objective_may_set_fields_of_its_own(tmp_path):
    entries = ("udlm:model.time=adaln:optim.lr=0.5", "ar")
    udlm, ar = cells_of(tmp_path, entries, ("dp",), (0,))
    assert (udlm.objective, udlm.config_error) == ("udlm", "")
    assert (udlm.config.model.time, udlm.config.optim.lr) == ("adaln", 0.5)
    assert (ar.config.model.time, ar.config.optim.lr) == ("constant", get_config().optim.lr)
    assert "--config.model.time=adaln" in udlm.command
    assert udlm.name == "udlm,model.time=adaln,optim.lr=0.5-dp-0"
    for entry, sentence in {
        "arr": "--objectives='arr' is unknown",
        "ar:model.tim=1": "config.model.tim is unknown",
        "ar:optim.lr=fast": "'optim.lr=fast' has the wrong type: give a number",
        "ar:optim.lr": "'optim.lr' is not FIELD=VALUE",
    }.items():
        with pytest.raises(UserError, match=re.escape(sentence)):
            cells_of(tmp_path, (entry,))


def test_finished_is_validated_and_saved_at_the_last_step(tmp_path):
    cell = cells_of(tmp_path)[0]
    assert not cell.is_finished()
    done(cell)
    assert cell.is_finished()
    (cell.folder / "checkpoints" / "20").rmdir()  # killed while it was being written
    assert not cell.is_finished()


def test_a_run_of_fewer_steps_is_not_finished(tmp_path):
    cell = cells_of(tmp_path)[0]
    done(cell, nll=(3.0,), losses=(3.0,), steps=20)
    assert not cell.is_finished()


def test_another_run_in_the_folder_is_refused(tmp_path):
    cell = cells_of(tmp_path)[0]
    done(cell, fields={"optim.lr": 0.5})
    with pytest.raises(UserError, match=r"holds a run with config\.optim\.lr=0\.5"):
        cell.is_finished()


def test_a_cell_of_an_invalid_config_says_so(tmp_path):
    (cell,) = cells_of(tmp_path, ("udlm",), ("dp",), (0,))
    assert cell.config is None
    assert "config.model.time='constant' does not fit" in cell.config_error
    (row,) = planning.plan_cells([cell], None)
    assert row.state.startswith("will fail: config.model.time")


def test_a_plan_goes_by_the_cells_of_the_same_layout(tmp_path):
    cells = cells_of(tmp_path)
    dp0, tp0, dp1, tp1 = cells
    unknown = planning.plan_cells(cells, None)
    assert {row.source for row in unknown} == {"unknown"}
    assert "time unknown" in planning.plan_text(unknown, 1)
    for cell, seconds, whole in ((dp0, 30.0, True), (tp0, 7.0, False)):
        done(cell)
        write_cell(cell, code=0, seconds=seconds, whole=whole)
    rows = {row.cell: row for row in planning.plan_cells(cells, None)}
    assert rows[dp0.name].state == rows[tp0.name].state == "finished"
    assert rows[dp1.name].seconds == 30.0
    assert rows[dp1.name].source == "finished cells of its layout"
    # a cell that was stopped on the way says nothing of how long one takes
    assert rows[tp1.name].seconds == 30.0
    assert rows[tp1.name].source == "finished cells"
    assert "2 to run, about 00:30 with 2 at once" in planning.plan_text(list(rows.values()), 2)
    given = planning.plan_cells(cells, 0.5)[2]
    assert (given.seconds, given.source) == (
        10.0,
        "steps x --step_s, without startup and compilation",
    )


def test_answers_are_those_of_aot_or_its_sentence(tmp_path, monkeypatch):
    def run(command, **_):
        calls.append(command)
        fits = "--layout=dp" in command
        out = json.dumps({"fits": fits, "need_gib": 3.0, "available_gib": 16.0, "step_s": 0.02})
        bad = "--config.objective.name=md4" in command
        return planning.subprocess.CompletedProcess(
            command, 2 if bad else 0, f"words\n{out}\n", "noise\nerror: No compiler.\n"
        )

    calls = []
    monkeypatch.setattr(planning.subprocess, "run", run)
    answers = planning.ask_aot(cells_of(tmp_path, ("ar", "md4")), "v5e:4x4")
    words = {(one.objective, one.layout): planning.in_words(one) for one in answers}
    assert len(calls) == 4  # seeds do not matter
    assert words["ar", "dp"] == "fits: 3.00 of 16.00 GiB per device, a step takes at least 20.0 ms"
    assert words["ar", "tp"] == "does not fit: needs 3.00 of 16.00 GiB per device"
    assert words["md4", "dp"] == words["md4", "tp"] == "No compiler."


def test_what_is_known_of_a_cell_is_what_was_written_last(tmp_path):
    cell = cells_of(tmp_path)[0]
    assert read_cell(cell.folder) is None
    write_cell(cell)
    assert read_cell(cell.folder).reason is None
    write_cell(cell, code=2, reason="No.")
    assert read_cell(cell.folder).reason == "No."
    assert read_cell(cell.folder).command == cell.shell_command
