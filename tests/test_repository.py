"""The laws of the tree: imports run one way, and files and functions stay short."""

import ast
import graphlib
import re
import tomllib
from pathlib import Path

import ddm_jax

ROOT = Path(__file__).parents[1]

# From the ground up: a module imports from its own rank and from those below.
RANKS = (
    "config config_fields errors wording plugins progress recipes diffusion data",
    "models costs",
    "objectives samplers parallel",
    "settle experiment",
    "runs",
    "generation interop",
    "evaluation",
    "training compare aot",
    # the commands; so is every __main__
    "main sample translate evaluate judge convert prepare __main__ "
    "scripts cli run_flags config_help command_help compile_cache",
)
# (module, a module that it imports): why it may
IMPORTS_ALLOWED: dict[tuple[str, str], str] = {
    ("ddm_jax.command_help", "ddm_jax"): "its version",
}

MOST_LINES = {"file": 400, "function": 80}
FOLDERS = ("benchmarks", "configs", "ddm_jax", "examples", "launch", "tests")
# path, or path:function: why it may be longer
LENGTHS_ALLOWED: dict[str, str] = {}


def sources(*folders):
    """Path from the root -> text of every Python file."""
    paths = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def import_graph():
    """Module -> modules that it imports, at its top or within functions.

    ddm_jax itself, the public API, is not among them: it imports lazily, and may import everything.
    """
    trees = {
        path.removesuffix(".py").replace("/", ".").removesuffix(".__init__"): ast.parse(text)
        for path, text in sources("ddm_jax").items()
    }
    graph = {}
    for name in trees.keys() - {"ddm_jax"}:
        found = set()
        for node in ast.walk(trees[name]):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{name} has a relative import"
                parts = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= {part if part in trees else node.module for part in parts}
        graph[name] = found & trees.keys()
    return graph


def rank(name):
    parts = name.split(".")
    key = parts[-1] if parts[-1] == "__main__" else "".join(parts[1:2])
    return next((i for i, members in enumerate(RANKS) if key in members.split()), len(RANKS))


def lengths():
    """(path, or path:function; what it is; its lines), of every file and function."""
    for path, text in sources(*FOLDERS).items():
        yield path, "file", text.count("\n")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                yield f"{path}:{node.name}", "function", node.end_lineno - node.lineno + 1


def test_no_import_runs_upwards():
    graph = import_graph()
    assert not [name for name in graph if rank(name) == len(RANKS)], "give it a rank"
    upwards = {(a, b) for a, found in graph.items() for b in found if rank(b) > rank(a)}
    assert upwards == IMPORTS_ALLOWED.keys()


def test_no_files_import_each_other():
    assert list(graphlib.TopologicalSorter(import_graph()).static_order())


def test_files_and_functions_are_short():
    long = {name: lines for name, kind, lines in lengths() if lines > MOST_LINES[kind]}
    assert long.keys() == LENGTHS_ALLOWED.keys(), long


def test_no_text_installs_ddm_jax_from_an_index():
    texts = [ROOT / "README.md", ROOT / "Makefile", *(ROOT / "docs").rglob("*.md")]
    texts += [p for f in FOLDERS for p in (ROOT / f).rglob("*") if p.is_file()]
    wrong = re.compile(r"pip install.*ddm_jax\[")
    assert not [p for p in texts if wrong.search(p.read_text(encoding="utf-8", errors="ignore"))]


def test_extras_in_messages_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = set(re.findall(r"how_to_install\(['\"](\w+)", "\n".join(sources("ddm_jax").values())))
    assert named
    assert named <= project["optional-dependencies"].keys()


def test_one_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert ddm_jax.__version__ == version
    for file, pattern in (("CHANGELOG.md", r"^## (\S+)"), ("CITATION.cff", r"^version: (\S+)")):
        assert re.search(pattern, (ROOT / file).read_text(), re.MULTILINE)[1] == version
