"""The README tells the truth: its links, its tables, its recipe and its commands.

tests/run_pages.py runs all commands of the README and the tutorial, from a fresh clone.
"""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ddm_jax.config import resolve
from ddm_jax.diffusion.processes import PROCESSES
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.objectives import OBJECTIVES
from ddm_jax.parallel.layouts import LAYOUTS
from ddm_jax.samplers import SAMPLERS
from tests import commands, run_pages

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
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert recipes == set(re.findall(r"^\| \[(\w+)\]\(\.\./configs/", page, re.MULTILINE))
    benchmarks = re.search(r"benchmarks\.\{([\w,]+)\}", row("benchmarks"))[1].split(",")
    commands = {p.stem for p in (ROOT / "benchmarks").glob("*.py")} - {"timing"}  # a library
    assert commands == set(benchmarks)


def test_every_block_of_commands_is_found():
    """As many as there are fences: none is left out by the script that runs them."""
    for page in (ROOT / name for name in run_pages.PAGES):
        text = page.read_text(encoding="utf-8")
        blocks = list(run_pages.find_blocks(text))
        assert len(blocks) == len(re.findall(r"^```(?:bash|python)$", text, re.MULTILINE)) > 3
        assert len([b for b in blocks if b.skip]) == text.count("<!-- skip: ")
        for block in blocks:
            assert text.splitlines()[block.line - 1] == f"```{block.language}"


def test_script_of_a_page_stops_at_the_first_failure(tmp_path):
    page = "# A\n\n```bash\nx=3\n```\n\n<!-- skip: it says why -->\n```bash\nfalse\n```\n"
    page += "```python\nprint('it''s', 6 * 7)\n```\n```bash\necho $x\n{}\necho last\n```\n"
    for command, code in (("true", 0), ("false | cat", 1), ("missing-command", 127)):
        blocks = list(run_pages.find_blocks(page.format(command)))
        script = run_pages.make_script("A.md", blocks).replace("python -", f"{sys.executable} -")
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
        assert done.returncode == code
        assert "=== A.md:8 skipped: it says why" in done.stdout
        assert "its 42\n" in done.stdout
        assert done.stdout.count("\n3\n") == 1
        assert ("last" in done.stdout) == (code == 0)


def test_recipe_of_the_readme_resolves():
    code = re.search(r"cat > my_recipe.py <<'END'\n(.*?)\nEND\n", README, re.DOTALL)[1]
    namespace = {}
    exec(code, namespace)
    config = resolve(namespace["get_config"]())
    assert config.objective.name == "radd_lambda_dce"
    assert config.train.batch_size * config.data.length <= 1024  # it trains on a laptop


@pytest.mark.slow
def test_override_command_of_the_readme_runs(tmp_path):
    """The command with a variant, at fewer steps and on text that the test writes."""
    start = README.index("python -m ddm_jax.main --config=configs/radd_tiny.py:loss=ao")
    command = README[start : README.index("\n```", start)].replace("\\\n", " ")
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "ddm_jax.main"]
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for i in range(60):
        (corpus / f"{i}.txt").write_text(f"Message {i}: the state of the union is strong. " * 20)
    words = [w.replace("ddm_jax/**/*.py", f"{corpus}/*.txt") for w in words[1:]]
    words = [w.replace("work/radd_ao", str(tmp_path / "run")) for w in words]
    words += [f"--config.data.root={tmp_path / 'root'}"]
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
