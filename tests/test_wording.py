"""Numbers agree with their nouns, and columns are aligned."""

from ddm_jax.wording import columns, counted, printable


def test_one_and_several():
    assert [counted(n, "step") for n in (0, 1, 2)] == ["0 steps", "1 step", "2 steps"]
    assert counted(1024, "held-out token") == "1,024 held-out tokens"


def test_columns():
    rows = [["", "tokens", "x"], ["a", "1", "0.5"], ["long name", "12,345", "-"]]
    assert columns(rows).split("\n") == [
        "           tokens    x",
        "a               1  0.5",
        "long name  12,345    -",
    ]


def test_terminal_gets_no_control_characters():
    assert printable("a\tb\nü\r\x1b[2J\x07\x9b") == "a\tb\nü\ufffd\ufffd[2J\ufffd\ufffd"
