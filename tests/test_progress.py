"""What is shown while sequences are drawn or scored: a bar in a terminal, lines elsewhere."""

import sys

from ddm_jax.runs.progress import ProgressBar


def test_lines_by_tenths_where_there_is_no_terminal(capsys):
    with ProgressBar(40) as progress:
        for done in range(1, 41):
            progress.update(done, f"{done / 2} evaluations each")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == [f"{n}/40" for n in range(4, 41, 4)]
    assert lines[0].startswith("4/40 sequences  2.0 evaluations each  ")
    assert lines[-1].endswith("00:00 left")


def test_resumed_work_counts_from_where_it_was(capsys):
    with ProgressBar(10, done=8, unit="block") as progress:
        progress.update(10)
    assert capsys.readouterr().err.splitlines() == ["10/10 blocks  00:00 left"]


def test_nested_bar_prints_no_lines(capsys):
    with ProgressBar(2, nested=True) as progress:
        progress.update(2)
    assert capsys.readouterr().err == ""


def test_bar_in_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with ProgressBar(2, unit="target") as progress:
        progress.update(1, "3.0 evaluations each")
        progress.update(2, "3.5 evaluations each")
    said = capsys.readouterr().err
    assert "2/2" in said
    assert "target" in said
    assert "3.5 evaluations each" in said
