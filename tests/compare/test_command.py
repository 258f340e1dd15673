"""`python -m ddm_jax.compare` as a whole: stopped, killed, resumed; a failing cell; --from."""

import json
import random
import signal
import time

import pytest

from ddm_jax.runs.files import read_metrics
from tests import commands
from tests.commands import assert_one_sentence

STEPS = 200
# twelve examples do not split over eight devices, and need not under tp=8
SETTINGS = {
    "model.width": 16,
    "model.depth": 1,
    "data.tokenizer": "bytes",
    "data.length": 16,
    "data.validation_fraction": 0.2,
    "data.test_fraction": 0.0,
    "train.batch_size": 12,
    "train.log_every": 5,
    "train.checkpoint_every": 50,
    "eval.every": STEPS,
    "eval.sequences": 8,
    "eval.batch_size": 8,
    "eval.draws": 1,
    "sampler.steps": 2,
}
SAMPLES = ["--samples=2", "--sample_steps=2"]


def start(*flags):
    return commands.start("compare", *flags)


def finish(command, code=0):
    """All that it says; what it prints as its result comes last."""
    ended = command.finish(code)
    return ended.stderr + ended.stdout


def wait_for_step(command, cell, step):
    while not any(r["step"] >= step for r in read_metrics(cell / "metrics.jsonl")):
        assert command.poll() is None, command.stderr
        time.sleep(0.02)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """The flags of a comparison of two cells, and its folder."""
    folder = tmp_path_factory.mktemp("comparison")
    words = random.Random(0).choices(["the", "state", "of", "union", "is", "strong"], k=8000)
    for i in range(20):
        (folder / f"{i}.txt").write_text(" ".join(words[400 * i : 400 * (i + 1)]))
    settings = SETTINGS | {"data.source": f"text:{folder}/*.txt", "data.root": str(folder / "data")}
    fields = [f"--config.{name}={value}" for name, value in settings.items()]
    recipe = ["--config=configs/compare_tiny.py", *fields, f"--steps={STEPS}", "--devices=8"]
    cells = ["--objectives=ar", "--layouts=dp,tp", "--seeds=0"]
    return folder / "w", [*recipe, *cells, f"--workdir={folder / 'w'}", *SAMPLES]


@pytest.fixture(scope="module")
def finished(comparison):
    """Stopped once by SIGTERM, once by SIGKILL, and run to its end; the last output."""
    workdir, flags = comparison
    cell = workdir / "cells" / "ar-tp-0"
    process = start(*flags)
    wait_for_step(process, cell, 20)
    process.send_signal(signal.SIGTERM)
    stopped = finish(process, 143)
    at = max(r["step"] for r in read_metrics(cell / "metrics.jsonl"))
    early = json.loads((workdir / "report.json").read_text())

    process = start(*flags)
    wait_for_step(process, cell, at + 20)
    process.kill()  # its cell keeps running
    process.wait()
    output = finish(start(*flags, "--json"))
    return workdir, stopped, early, output


@pytest.mark.slow
def test_stopped_it_saves_and_makes_the_page_of_the_cells_so_far(finished):
    _, stopped, early, _ = finished
    assert "Stopped and saved. Run the same command to resume." in stopped
    states = {run["layout"]: run["state"] for run in early["runs"]}
    assert states == {"dp": "failed", "tp": "unfinished"}
    assert early["texts"] is None


@pytest.mark.slow
def test_nothing_is_lost_and_nothing_run_twice(finished):
    workdir, *_ = finished
    cell = workdir / "cells" / "ar-tp-0"
    logged = [r["step"] for r in read_metrics(cell / "metrics.jsonl") if "loss" in r]
    assert logged == list(range(5, STEPS + 1, 5))
    said = (cell / "log.txt").read_text()
    assert said.count("$ ") == 2  # the third comparison waited for the cell of the second
    assert said.count("Resuming from step") == 1
    assert said.count("Starting at step 0") == 1


@pytest.mark.slow
def test_a_cell_that_fails_shows_its_sentence_on_the_page(finished):
    workdir, _, _, output = finished
    sentence = "=12 does not split over 8 devices: make it a multiple of 8."
    assert sentence in output
    assert sentence in (workdir / "report.html").read_text()
    report = json.loads((workdir / "report.json").read_text())
    assert [row["layout"] for row in report["costs"]] == ["tp"]
    assert report["objectives"][0]["layouts"] == ["tp"]


@pytest.mark.slow
def test_it_ends_with_the_page_and_one_json_object(finished):
    workdir, _, _, output = finished
    *_, page, result = output.splitlines()
    assert page == f"1 of 2 runs finished. The page: {workdir / 'report.html'}"
    found = json.loads(result)
    assert found["counts"] == {"runs": 2, "finished": 1, "failed": 1}
    assert found["objectives"][0]["label"] == "ar"


@pytest.mark.slow
def test_texts_are_drawn_judged_by_the_autoregressive_cell_and_kept(finished):
    workdir, *_ = finished
    texts = json.loads((workdir / "report.json").read_text())["texts"]
    (row,) = texts["rows"]  # one evaluation a token, whatever --sample_steps
    assert (row["sampler"], row["nfe"], len(row["texts"])) == ("autoregressive", 16.0, 2)
    assert "ar-tp-0" in texts["judge"]
    assert 1 < row["scores"]["perplexity"] < 300
    assert texts["real"]["scores"]["entropy"] > 0


@pytest.mark.slow
def test_the_same_page_from_work_directories(finished, tmp_path):
    workdir, *_ = finished
    drawn = {p: p.stat().st_mtime_ns for p in (workdir / "samples").iterdir()}
    flags = [f"--from={workdir}", f"--workdir={workdir}", *SAMPLES]
    before = json.loads((workdir / "report.json").read_text())
    finish(start(*flags))
    after = json.loads((workdir / "report.json").read_text())
    for name in ("runs", "objectives", "costs", "agreement", "texts", "layouts"):
        assert after[name] == before[name], name
    assert {p: p.stat().st_mtime_ns for p in (workdir / "samples").iterdir()} == drawn

    # of a single run, elsewhere
    single = workdir / "cells" / "ar-tp-0"
    output = finish(start(f"--from={single}", f"--workdir={tmp_path}", "--samples=0"))
    assert f"1 of 1 run finished. The page: {tmp_path / 'report.html'}" in output


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--seeds=0,one"], "--seeds=0,one is not a list of whole numbers"),
        (["--layouts=dpp"], "--layouts='dpp' is unknown"),
    ],
)
def test_mistakes_end_in_a_sentence(flags, sentence, tmp_path):
    recipe = ["--config=configs/compare_tiny.py", f"--workdir={tmp_path}"]
    assert_one_sentence(commands.run("compare", *recipe, *flags), sentence)


def test_of_several_processes_none_makes_the_page(tmp_path):
    flags = ["--config=configs/compare_tiny.py", f"--workdir={tmp_path}"]
    done = commands.run("compare", *flags, env={"JAX_NUM_PROCESSES": "2"})
    wanted = (
        f"add --cells_only, and make the page afterwards in one process, with --from={tmp_path}"
    )
    assert_one_sentence(done, wanted)
