"""Aggregation on runs of known numbers, against closed forms."""

import json
import math

import pytest

from ddm_jax.compare.page import render
from ddm_jax.compare.report import make_report
from ddm_jax.compare.results import FAILED, FINISHED, UNFINISHED, find_runs, read_result
from ddm_jax.compare.summary import (
    agreement_rows,
    cost_rows,
    label_runs,
    mean_and_spread,
    objective_rows,
    order_of_layouts,
)
from ddm_jax.errors import UserError
from tests.compare.made import make_run


def read(*folders):
    return label_runs([read_result(folder) for folder in folders])


def test_spread_is_mean_and_sample_standard_deviation():
    found = mean_and_spread([1.0, 2.0, 6.0])
    assert found == {"mean": 3.0, "sd": math.sqrt(7.0), "min": 1.0, "max": 6.0, "n": 3}
    assert mean_and_spread([2.0])["sd"] is None


def test_equal_steps_are_the_fewest_of_all_and_equal_time_the_shortest(tmp_path):
    # a: 20 steps of 0.1 s; b: 30 steps of 0.2 s. Both at step 20 and at 2 s
    runs = read(
        make_run(tmp_path / "a0", "ar", seed=0, nll=(3.0, 2.0)),
        make_run(tmp_path / "a1", "ar", seed=1, nll=(3.0, 2.4)),
        make_run(tmp_path / "b", "gidd", losses=(9, 8, 7), nll=(2.5, 1.5, 0.5), step_s=0.2),
    )
    best, other = objective_rows(runs, ["dp"])
    assert (best["label"], other["label"]) == ("gidd", "ar")
    assert best["steps"] == other["steps"] == 20
    assert best["nll"]["mean"] == 1.5
    assert other["nll"]["mean"] == pytest.approx(2.2)
    assert other["nll"]["sd"] == pytest.approx(math.sqrt(0.08))
    # 2 s is step 10 of b, and step 20 of a
    assert best["seconds"] == pytest.approx(2.0)
    assert best["nll_at_time"]["mean"] == pytest.approx(2.5)
    assert other["nll_at_time"]["mean"] == pytest.approx(2.2)
    assert other["train_s"] == pytest.approx(2.0)
    assert best["train_s"] == pytest.approx(6.0)


def test_between_validations_the_bound_is_interpolated_and_before_the_first_unknown(tmp_path):
    runs = read(
        make_run(tmp_path / "a", "ar", nll=(3.0, 2.0), step_s=0.15),  # ends after 3 s
        make_run(tmp_path / "b", "gidd", nll=(4.0, 2.0), step_s=0.2),  # 3 s is step 15
        make_run(tmp_path / "c", "radd_ao", nll=(1.0, 1.0), step_s=0.4),  # its first is at 4 s
    )
    by_label = {row["label"]: row for row in objective_rows(runs, ["dp"])}
    assert by_label["gidd"]["nll_at_time"]["mean"] == pytest.approx(3.0)
    assert by_label["radd_ao"]["nll_at_time"] is None


def test_runs_too_short_for_the_others_first_validation_leave_a_gap(tmp_path):
    late = make_run(tmp_path / "a", "ar", nll=(3.0, 2.0, 1.0), losses=(1.0, 1.0, 1.0))
    lines = (late / "metrics.jsonl").read_text().splitlines()
    (late / "metrics.jsonl").write_text("\n".join(x for x in lines if "3.0" not in x) + "\n")
    runs = read(late, make_run(tmp_path / "b", "gidd", nll=(4.0,), losses=(1.0,)))
    first, last = objective_rows(runs, ["dp"])
    assert (first["label"], first["nll"]["mean"]) == ("gidd", 4.0)
    assert (last["label"], last["nll"]) == ("ar", None)
    page = render(make_report(runs, [], None, ""))
    assert "At equal steps (10): gidd 4.000." in page


def test_a_pseudo_likelihood_comes_last_whatever_it_is(tmp_path):
    runs = read(
        make_run(tmp_path / "a", "ar", nll=(3.0, 2.0)),
        make_run(tmp_path / "b", "mlm", nll=(0.3, 0.2)),
    )
    rows = objective_rows(runs, ["dp"])
    assert [row["label"] for row in rows] == ["ar", "mlm"]
    assert rows[0]["estimates"] == "exact"
    assert "pseudo-likelihood" in rows[1]["estimates"]


def test_each_seed_counts_once_under_the_first_layout_that_finished_it(tmp_path):
    runs = read(
        make_run(tmp_path / "a", layout="dp", seed=0, nll=(3.0, 2.0)),
        make_run(tmp_path / "b", layout="tp", seed=0, nll=(9.0, 9.0)),
        make_run(tmp_path / "c", layout="dp", seed=1, nll=(3.0,), steps=20),  # unfinished
        make_run(tmp_path / "d", layout="tp", seed=1, nll=(3.0, 4.0)),
    )
    (row,) = objective_rows(runs, ["dp", "tp"])
    assert row["seeds"] == [0, 1]
    assert row["nll"]["mean"] == 3.0
    assert row["layouts"] == ["dp", "tp"]


def test_layouts_are_held_to_the_reference_of_the_same_objective_and_seed(tmp_path):
    runs = read(
        make_run(tmp_path / "a0", layout="dp", seed=0, losses=(4.0, 2.0), nll=(3.0, 2.0)),
        make_run(tmp_path / "b0", layout="tp", seed=0, losses=(4.0002, 2.0), nll=(3.0, 2.0001)),
        make_run(tmp_path / "a1", layout="dp", seed=1, losses=(5.0, 1.0), nll=(3.0, 2.0)),
        make_run(tmp_path / "b1", layout="tp", seed=1, losses=(5.0, 1.001), nll=(3.0, 2.0)),
        make_run(tmp_path / "c1", layout="fsdp", seed=1, losses=(5.0,), nll=(3.0,), steps=20),
        make_run(tmp_path / "d2", layout="tp", seed=2),  # has no reference
    )
    rows = {(r["seed"], r["layout"]): r for r in agreement_rows(runs, ["dp", "fsdp", "tp"])}
    assert set(rows) == {(0, "tp"), (1, "tp"), (1, "fsdp")}
    assert rows[0, "tp"]["loss"] == pytest.approx(5e-5)
    assert rows[0, "tp"]["nll"] == pytest.approx(5e-5)
    assert rows[0, "tp"]["holds"] is True
    assert rows[1, "tp"]["loss"] == pytest.approx(1e-3)
    assert rows[1, "tp"]["holds"] is False
    assert rows[1, "fsdp"]["steps"] == 10  # what both have
    assert rows[1, "fsdp"]["loss"] == 0.0


def test_a_validation_that_differs_is_a_difference_too(tmp_path):
    runs = read(
        make_run(tmp_path / "a", layout="dp", nll=(3.0, 2.0)),
        make_run(tmp_path / "b", layout="tp", nll=(3.0, 2.001)),
    )
    (row,) = agreement_rows(runs, ["dp", "tp"])
    assert row["loss"] == 0.0
    assert row["holds"] is False


def test_costs_are_means_over_seeds_relative_to_the_reference(tmp_path):
    program = {
        "compile_s": 3.0,
        "memory_bytes": {"peak": 2**20},
        "collectives": {"all-reduce": 5.0},
    }
    folders = [
        make_run(tmp_path / "a", layout="dp", seed=0, step_s=0.1),
        make_run(tmp_path / "b", layout="dp", seed=1, step_s=0.3),
        make_run(tmp_path / "c", layout="tp", seed=0, step_s=0.5),
    ]
    (folders[2] / "program.json").write_text(json.dumps(program))
    dp, tp = cost_rows(read(*folders), ["dp", "tp"])
    assert dp["step_s"] == pytest.approx(0.2)
    assert tp["ratio"] == pytest.approx(2.5)
    assert (dp["compile_s"], dp["peak_bytes"], dp["collectives"]) == (None, None, None)
    assert (tp["compile_s"], tp["peak_bytes"]) == (3.0, 2**20)
    assert tp["collectives"] == {"all-reduce": 5.0}


def test_training_time_is_summed_over_logs_and_leaves_pauses_out(tmp_path):
    folder = make_run(tmp_path / "a")
    lines = [
        {"step": 10, "loss": 1.0, "step_s": 0.1, "tokens_per_s": 1.0},
        {"step": 15, "nll": 3.0, "stderr": 0.1},
        {"step": 20, "loss": 1.0, "step_s": 0.3, "tokens_per_s": 1.0},
        {"step": 25, "nll": 2.0, "stderr": 0.1},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    run = read_result(folder)
    assert [point[2] for point in run.train] == pytest.approx([1.0, 4.0])
    # halfway through the second ten steps, and five steps past the last log at its pace
    assert [point[3] for point in run.validation] == pytest.approx([2.5, 5.5])
    assert run.step_s == pytest.approx(0.2)


def test_states_and_reasons(tmp_path):
    cell = {"objective": "ar", "layout": "dp", "seed": 0, "command": "python"}
    waiting = tmp_path / "waiting"
    failed = tmp_path / "failed"
    for folder in (waiting, failed):
        folder.mkdir()
    (waiting / "cell.json").write_text(json.dumps(cell))
    (failed / "cell.json").write_text(json.dumps(cell | {"code": 2, "reason": "No such thing."}))
    part = make_run(tmp_path / "part", nll=(3.0,), losses=(1.0,), steps=50)
    done = make_run(tmp_path / "done")
    with (part / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "lo')  # torn by a kill
    runs = [read_result(folder) for folder in (waiting, failed, part, done)]
    assert [run.state for run in runs] == [UNFINISHED, FAILED, UNFINISHED, FINISHED]
    assert [run.reason for run in runs] == [
        "not started", "No such thing.", "at step 10 of 50", "",
    ]  # fmt: skip


def test_runs_are_labelled_by_the_fields_in_which_they_differ(tmp_path):
    runs = read(
        make_run(tmp_path / "a", fields={"optim.lr": 0.1}),
        make_run(tmp_path / "b", fields={"optim.lr": 0.2}),
        make_run(tmp_path / "c", "gidd", fields={"train.log_every": 3}),
        make_run(tmp_path / "d", "gidd", layout="tp"),
        make_run(tmp_path / "e", "gidd", layout="tp"),
    )
    labels = [run.label for run in runs]
    assert labels[:3] == ["ar (optim.lr=0.1)", "ar (optim.lr=0.2)", "gidd"]
    assert labels[3] != labels[4]
    assert str(tmp_path / "d") in labels[3]


def test_the_first_layout_is_the_one_given_else_dp(tmp_path):
    runs = read(make_run(tmp_path / "a", layout="tp"), make_run(tmp_path / "b", layout="dp"))
    assert order_of_layouts(runs) == ["dp", "tp"]
    assert order_of_layouts(runs, ["tp", "fsdp"]) == ["tp", "dp"]


def test_a_report_warns_of_runs_that_do_not_compare(tmp_path):
    one = make_run(tmp_path / "a", "ar")
    alike = make_run(tmp_path / "b", "gidd")
    other = make_run(tmp_path / "c", "md4", fingerprint="other")
    assert make_report(read(one, alike), [], None, "")["notes"] == []
    (note,) = make_report(read(one, other), [], None, "")["notes"]
    assert "different text" in note


def test_runs_are_found_in_comparisons_and_by_themselves(tmp_path):
    single = make_run(tmp_path / "single")
    cell = make_run(tmp_path / "w" / "cells" / "ar-dp-0")
    (cell / "cell.json").write_text("{}")
    assert find_runs([single, tmp_path / "w", single]) == [single, cell]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"--from=.*empty holds neither a run"):
        find_runs([tmp_path / "empty"])
