"""What is shown while sequences are drawn or scored: a bar in a terminal, lines elsewhere."""

import sys

from ddm_jax import progress
from ddm_jax.runs.progress import ProgressBar


def test_lines_by_tenths_where_there_is_no_terminal(capsys):
    with ProgressBar(40) as bar:
        for done in range(1, 41):
            bar.update(done, f"{done / 2} evaluations each")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == [f"{n}/40" for n in range(4, 41, 4)]
    assert lines[0].startswith("4/40 sequences  2.0 evaluations each  ")
    assert lines[-1].endswith("00:00 left")


def test_resumed_work_counts_from_where_it_was(capsys):
    with ProgressBar(10, done=8, unit="block") as bar:
        bar.update(10)
    assert capsys.readouterr().err.splitlines() == ["10/10 blocks  00:00 left"]


def test_nested_bar_prints_no_lines(capsys):
    with ProgressBar(2, nested=True) as bar:
        bar.update(2)
    assert capsys.readouterr().err == ""


def test_bar_in_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with ProgressBar(2, unit="target") as bar:
        bar.update(1, "3.0 evaluations each")
        bar.update(2, "3.5 evaluations each")
    said = capsys.readouterr().err
    assert "2/2" in said
    assert "target" in said
    assert "3.5 evaluations each" in said


def test_bytes_and_an_unknown_total(capsys, monkeypatch):
    with progress.ProgressBar(4_000_000, unit="B", label="tokenise") as bar:
        bar.add(1_500_000)
    assert capsys.readouterr().err.startswith("tokenise  1.50MB/4.00MB  ")
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    with progress.ProgressBar(0, unit="document") as bar:
        bar.add(3)
        bar.add(4)
    assert capsys.readouterr().err.splitlines() == ["3 documents", "7 documents"]


def test_bar_that_is_not_shown(capsys):
    with progress.ProgressBar(2, shown=False) as bar:
        bar.add(2)
    assert capsys.readouterr().err == ""
