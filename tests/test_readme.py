"""The README tells the truth: its links, its tables, its recipe and its commands."""

import json
import re
import shlex
from pathlib import Path

import pytest

from ddm_jax.config import resolve
from ddm_jax.diffusion.processes import PROCESSES
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.objectives import OBJECTIVES
from ddm_jax.parallel.layouts import LAYOUTS
from ddm_jax.samplers import SAMPLERS
from tests import commands

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]


def row(name):
    """The table row that begins with a name."""
    return next(line for line in README.splitlines() if line.startswith(f"| {name}"))


def test_links_lead_somewhere():
    for page in PAGES:
        links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
        missing = [x for x in links if "://" not in x and not (page.parent / x).exists()]
        assert not missing, page


def test_tables_name_what_the_code_has():
    for name, table in {
        "objectives": OBJECTIVES,
        "forward processes": PROCESSES,
        "noise schedules": SCHEDULES,
        "samplers": SAMPLERS,
        "layouts": LAYOUTS,
    }.items():
        assert set(table) <= set(re.findall(r"`(\w+)`", row(name))), name
    recipes = {p.stem for p in (ROOT / "configs").glob("*.py")}
    named = re.findall(r"\[(\w+)\]", row("recipes, the papers'") + row("recipes for two cores"))
    assert recipes == set(named)
    benchmarks = re.search(r"benchmarks\.\{([\w,]+)\}", row("benchmarks"))[1].split(",")
    commands = {p.stem for p in (ROOT / "benchmarks").glob("*.py")} - {"timing"}  # a library
    assert commands == set(benchmarks)


def test_recipe_of_the_readme_resolves():
    code = README[README.index("    from ml_collections") : README.index("Mistakes are found")]
    namespace = {}
    exec("\n".join(line[4:] for line in code.splitlines()), namespace)
    assert resolve(namespace["get_config"]()).objective.name == "radd_lambda_dce"


@pytest.mark.slow
def test_override_command_of_the_readme_runs(tmp_path):
    """The command with a variant, at fewer steps and on text that the test writes."""
    start = README.index("python -m ddm_jax.main --config=configs/radd_tiny.py:loss=ao")
    command = README[start : README.index("\n\n", start)].replace("\\\n", " ")
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "ddm_jax.main"]
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for i in range(60):
        (corpus / f"{i}.txt").write_text(f"Message {i}: the state of the union is strong. " * 20)
    words = [w.replace("/tmp/corpus", str(corpus)) for w in words[1:]]
    words = [w.replace("/tmp/radd_ao", str(tmp_path / "run")) for w in words]
    words += ["--config.data.tokenizer=bytes", f"--config.data.root={tmp_path / 'root'}"]
    words += ["--config.train.steps=2", "--config.model.width=32", "--config.model.depth=1"]
    words += ["--config.data.validation_fraction=0.2", "--config.sampler.steps=4", "--json"]
    words += ["--config.eval.sequences=16", "--config.sampler.num=2"]
    done = commands.run(words[1].removeprefix("ddm_jax."), *words[2:], code=0)
    assert '"finished": true' in done.stdout.splitlines()[-1]
    assert (tmp_path / "run" / "metrics.jsonl").exists()
    # and what was trained there can be sampled
    words = [f"--workdir={tmp_path / 'run'}", "--prefix=Message", "--json"]
    done = commands.run("sample", *words, code=0)
    out = json.loads(done.stdout.splitlines()[-1])["out"]
    lines = Path(out).read_text(encoding="utf-8").splitlines()
    assert all(json.loads(line)["text"].startswith("Message") for line in lines)
