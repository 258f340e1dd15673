"""Metrics reach metrics.jsonl, TensorBoard and wandb."""

import math
import shutil
import sys
import types

import pytest
from tensorboardX.proto.event_pb2 import Event

from ddm_jax.errors import UserError
from ddm_jax.runs.files import read_metrics
from ddm_jax.training.metric_writers import EVAL, TRAIN, Writers


def test_records_after_the_resumed_step_and_torn_lines_are_removed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n{"step": 3, "lo')
    writers = Writers(tmp_path, 1, "", {})
    writers.write(2, {"loss": 2.5}, TRAIN)
    writers.close()
    assert read_metrics(path) == [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.5}]


def test_values_that_are_not_finite_are_left_out(tmp_path):
    writers = Writers(tmp_path, 0, "", {})
    writers.write(1, {"loss": math.nan, "grad_norm": math.inf, "lr": 0.1}, TRAIN)
    writers.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "lr": 0.1}]


def events(folder):
    """The events of TensorBoard's files: length, checksum, event, checksum, as in a TFRecord."""
    found = []
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        while content:
            size = int.from_bytes(content[:8], "little")
            found.append(Event.FromString(content[12 : 12 + size]))
            content = content[size + 16 :]
    return found


def test_tensorboard_has_groups_and_samples_and_drops_what_is_written_again(tmp_path):
    writers = Writers(tmp_path, 0, "", {})
    writers.write(4, {"loss": 2.0, "lr": 0.5}, TRAIN)
    writers.write(4, {"nll": 3.0}, EVAL)
    writers.write_samples(4, [("7 evaluations", "a *b*\n\n" + "long " * 30), ("8", "")])
    writers.close()
    found = events(tmp_path / "tensorboard")
    values = [value for event in found for value in event.summary.value]
    scalars = {v.tag: v.simple_value for v in values if not v.HasField("tensor")}
    assert scalars == {"train/loss": 2.0, "train/lr": 0.5, "eval/nll": 3.0}
    (text,) = (v for v in values if v.HasField("tensor"))
    assert text.metadata.plugin_data.plugin_name == "text"
    lines = text.tensor.string_val[0].decode().splitlines()
    # Markdown that shows texts as they are, in lines that need no scrolling
    assert lines[:4] == ["**7 evaluations**", "", "    a *b*", "    "]
    assert " ".join("".join(lines[4:6]).split()) == ("long " * 30).strip()
    assert max(map(len, lines)) <= 104
    assert lines[-2:] == ["", "**8**"]
    assert {e.step for e in found if e.summary.value} == {4}
    shutil.rmtree(tmp_path / "tensorboard")
    Writers(tmp_path, 4, "", {}).close()  # resumes from step 4
    (start,) = (e for e in events(tmp_path / "tensorboard") if e.HasField("session_log"))
    assert start.step == 5


class FakeWandb:
    """Stands in for the package, whose server has logged up to a step; `calls` has all of them."""

    Error = ConnectionError

    def __init__(self, step):
        self.calls = []
        self.run = types.SimpleNamespace(step=step, log=self.log, finish=self.finish)

    def init(self, **options):
        self.calls.append(options)
        return self.run

    def log(self, values, step):
        self.calls.append((step, values))

    def finish(self):
        self.calls.append("finished")

    def Table(self, columns, data):
        return [dict(zip(columns, row, strict=True)) for row in data]


def write_with_wandb(workdir, step, monkeypatch):
    """What wandb, which has logged up to `step`, gets from a run."""
    fake = FakeWandb(step)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    workdir.mkdir(exist_ok=True)
    writers = Writers(workdir, 0, "my_project", {"seed": 1})
    writers.write(5, {"loss": 2.0}, TRAIN)
    writers.write(6, {"nll": 3.0}, EVAL)
    writers.write_samples(6, [("7 evaluations", "text")])
    writers.close()
    return fake.calls


def test_wandb_has_one_run_over_restarts(tmp_path, monkeypatch):
    first, *logged = write_with_wandb(tmp_path / "radd", 0, monkeypatch)
    assert {k: first[k] for k in ("project", "name", "resume")} == {
        "project": "my_project",
        "name": "radd",
        "resume": "allow",
    }
    assert first["config"] == {"seed": 1}
    table = [{"step": 6, "sample": "7 evaluations", "text": "text"}]
    assert logged == [
        (5, {"train/loss": 2.0}),
        (6, {"eval/nll": 3.0}),
        (6, {"samples": table}),
        "finished",
    ]
    # after a restart from an earlier checkpoint, wandb refuses steps that it has
    again, *logged = write_with_wandb(tmp_path / "radd", 6, monkeypatch)
    assert again["id"] == first["id"]
    assert [step for step, *_ in logged] == [6, 6, "f"]
    other, *_ = write_with_wandb(tmp_path / "other", 0, monkeypatch)
    assert len({other["id"], first["id"]}) == 2


def test_what_wandb_refuses_is_a_user_error(tmp_path, monkeypatch):
    fake = FakeWandb(0)
    fake.init = lambda **_: (_ for _ in ()).throw(fake.Error("no API key"))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with pytest.raises(
        UserError, match=r"'my_project' cannot be used \(no API key\): run `wandb lo"
    ):
        Writers(tmp_path, 0, "my_project", {})


def test_missing_wandb_is_a_user_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"needs wandb: pip install .*\[wandb\]'"):
        Writers(tmp_path, 0, "my_project", {})
