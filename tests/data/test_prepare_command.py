import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ddm_jax.data.open import prepare_command
from ddm_jax.data.sets.kinds import open_folder
from ddm_jax.data.sets.text import TextSpec, open_text
from tests import commands
from tests.data.corpora import interrupt_after_a_shard, pair_spec


def test_command_of_a_spec_prepares_it(tmp_path: Path, corpus: str):
    spec = TextSpec(corpus, "bytes", 16, "pad", validation_fraction=0.2, test_fraction=0.1)
    flags = shlex.split(prepare_command(spec, tmp_path / "set"))[3:]
    done = commands.run("prepare", *flags, "--json", code=0)
    prepared = open_text(tmp_path / "set")
    assert prepared.spec == spec
    record = json.loads(done.stdout.splitlines()[-1])
    assert record["folder"] == str(prepared.folder)
    assert record["splits"]["train"]["blocks"] == prepared.splits["train"].blocks
    lines = done.stderr.split("\n")
    size = Path(corpus.removeprefix("jsonl:")).stat().st_size
    assert lines[0].startswith(
        f"Preparing source={corpus} (1 file, {size / 1e3:.3g}kB), tokenizer="
    )
    for phase in ("tokenise", "write train", "write validation", "write test"):
        assert [line for line in lines if line.startswith(f"{phase}  ")][-1].endswith("00:00 left")
    assert "\r" not in done.stderr


def test_bad_flag_value_ends_in_one_sentence(tmp_path: Path):
    done = commands.run("prepare", "--source=text:/no/such/*.txt", f"--out={tmp_path}/set")
    assert done.code == 2
    assert done.stderr.count("\n") == 1
    assert "matches no file" in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_interrupted_preparation_leaves_nothing(tmp_path: Path, corpus: str):
    sets = tmp_path / "sets"
    sets.mkdir()
    flags = [f"--source={corpus}", "--tokenizer=bytes", f"--out={sets}/one"]
    done = commands.run("prepare", *flags, before=interrupt_after_a_shard, code=130)
    assert "a shard is written" in done.stderr
    assert "nothing is left behind" in done.stderr
    assert not list(sets.iterdir())


def test_command_of_a_pair_spec_prepares_it(tmp_path: Path, pair_source: str):
    spec = pair_spec(pair_source, validation=pair_source)
    flags = shlex.split(prepare_command(spec, tmp_path / "set"))[3:]
    done = commands.run("prepare", *flags, "--json", code=0)
    prepared = open_folder(tmp_path / "set")
    assert prepared.spec == spec
    record = json.loads(done.stdout.splitlines()[-1])
    info = prepared.splits["train"]
    assert record["splits"]["train"] == dataclasses.asdict(info)
    head, train = (line.split() for line in done.stdout.splitlines()[1:3])
    assert (head[:2], train[0]) == (["split", "pairs"], "train")
    figures = (info.pairs, info.source_tokens, info.tokens, info.long, info.empty)
    assert train[1:] == [f"{figure:,}" for figure in figures]
    assert re.search(r"^tokenise train  .* 00:00 left$", done.stderr, re.MULTILINE)
    assert "\r" not in done.stderr


@pytest.mark.parametrize(
    ("source", "flag"),
    [
        ("pairs:embedded", "--pack=pad"),
        ("pairs:embedded", "--beam_runner=DirectRunner"),
        ("embedded", "--source_length=8"),
    ],
)
def test_flag_of_the_other_kind_of_data_is_refused(tmp_path: Path, source: str, flag: str):
    done = commands.run("prepare", f"--source={source}", flag, f"--out={tmp_path}/set")
    assert done.code == 2
    assert done.stderr.count("\n") == 1
    assert f"{flag} does not apply to --source={source}: leave it out" in done.stderr


@pytest.mark.slow
def test_command_says_what_it_prepares_before_slow_imports():
    code = "import sys, ddm_jax.prepare; print({'jax', 'tensorflow_datasets'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
