"""Starts a training job on GKE: makes a JobSet from a template and passes it to kubectl.

    python launch/gke.py --name=radd --image=IMAGE --tpu=v5p --topology=2x2x2 -- \
        python -m ddm_jax.main --config=configs/radd_small.py --workdir=radd \
        --config.train.checkpoints=gs://BUCKET/radd
    python launch/gke.py --name=radd --image=IMAGE --gpu=nvidia-h100-80gb --nodes=2 -- ...

Every pod runs the command. A job that was preempted or stopped by SIGTERM (exit code 143) is
restarted without a limit; one that failed, at most --max-restarts times; one with a mistake in its
command (exit code 2), never. The cluster needs JobSet 0.10 or later: docs/cloud.md.
"""

import argparse
import json
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from string import Template

HERE = Path(__file__).resolve().parent
# https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus: label, dimensions of a slice
TPUS = {
    "v5e": ("tpu-v5-lite-podslice", 2),
    "v5p": ("tpu-v5p-slice", 3),
    "v6e": ("tpu-v6e-slice", 2),
}
CHIPS_PER_HOST = 4  # TPUs of a machine in a slice of several machines

FAILURE_POLICY = """\
  failurePolicy:
    maxRestarts: $max_restarts
    restartStrategy: BlockingRecreate
    rules:
    - name: mistake
      action: FailJobSet
      onJobFailureReasons: [PodFailurePolicy]
      onJobFailureMessagePatterns: ["rule at index 0$$"]
    - name: preempted
      action: RestartJobSetAndIgnoreMaxRestarts
      onJobFailureReasons: [PodFailurePolicy]"""
POD_FAILURE_POLICY = """\
        podFailurePolicy:
          rules:
          - action: FailJob  # a mistake in the command, config or data
            onExitCodes: {containerName: train, operator: In, values: [2]}
          - action: FailJob  # stopped by SIGTERM, and saved
            onExitCodes: {containerName: train, operator: In, values: [143]}
          - action: FailJob  # preempted, drained or evicted
            onPodConditions: [{type: DisruptionTarget, status: "True"}]"""
SPOT = """\
              cloud.google.com/gke-spot: "true"
            tolerations:
            - {key: cloud.google.com/gke-spot, operator: Exists, effect: NoSchedule}"""

# placeholder in the templates -> its line, for a folder that all pods share
SHARED = {
    "$volumes_key": "            volumes:",
    "$volumes": "            - {name: shared, persistentVolumeClaim: {claimName: $claim}}",
    "$mounts_key": "              volumeMounts:",
    "$mounts": "              - {name: shared, mountPath: /mnt/shared}",
}


def manifest(args: argparse.Namespace) -> str:
    """The JobSet as YAML.

    Args:
      args: the parsed flags; every pod runs `args.command`.

    Raises:
      ValueError: a flag is wrong; the message is one sentence.
    """
    names = {
        "name": args.name,
        "service-account": args.service_account,
        "gpu": args.gpu,
        "claim": args.claim,
    }
    for flag, name in names.items():
        if name is not None and not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", name):
            raise ValueError(
                f"--{flag}={name} is not a valid name: give up to 40 lower-case letters, digits "
                "and hyphens, starting with a letter and not ending with a hyphen."
            )
    values = {
        "name": args.name,
        "image": json.dumps(args.image),
        "service_account": args.service_account,
        # Kubernetes would replace $(NAME); and JSON is valid YAML
        "command": json.dumps([word.replace("$(", "$$(") for word in args.command]),
        "failure_policy": Template(FAILURE_POLICY).substitute(max_restarts=args.max_restarts),
        "pod_failure_policy": POD_FAILURE_POLICY,
        "spot": SPOT,
        "claim": args.claim,
    }
    kind, more = ("tpu", _tpu(args)) if args.tpu else ("gpu", _gpu(args))
    text = (HERE / f"jobset_{kind}.yaml").read_text(encoding="utf-8")
    if not args.spot:
        text = text.replace("$spot\n", "")
    for key, line in SHARED.items():
        text = text.replace(f"{key}\n", f"{line}\n" if args.claim else "")
    return Template(text).substitute(values | more)


def _tpu(args: argparse.Namespace) -> dict[str, str | int]:
    label, dimensions = TPUS[args.tpu]
    example = "x".join(["2"] * (dimensions - 1) + ["4"])
    if not re.fullmatch("x".join([r"[1-9]\d*"] * dimensions), args.topology or ""):
        raise ValueError(
            f"--topology={args.topology} is not a topology of {args.tpu}: give {dimensions} "
            f"numbers such as {example}."
        )
    total = math.prod(map(int, args.topology.split("x")))
    chips = args.chips_per_host or min(total, CHIPS_PER_HOST)
    if total % chips:
        raise ValueError(
            f"--topology={args.topology} has {total} chips, which is not a multiple of "
            f"--chips-per-host={chips}: give 1, 4 or 8."
        )
    return {
        "accelerator": label,
        "topology": args.topology,
        "slices": args.slices,
        "hosts": total // chips,
        "chips": chips,
    }


def _gpu(args: argparse.Namespace) -> dict[str, str | int]:
    return {"accelerator": args.gpu, "nodes": args.nodes, "gpus": args.gpus}


def _positive(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text} is out of range: give at least 1")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Starts a training job on GKE.",
        usage="%(prog)s --name=NAME --image=IMAGE (--tpu=... | --gpu=...) [options] -- COMMAND ...",
    )
    parser.add_argument("--name", required=True, help="name of the job")
    parser.add_argument("--image", required=True, help="image, made with the Dockerfile at the top")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--tpu", choices=list(TPUS), help="kind of TPU")
    which.add_argument("--gpu", help="accelerator label of GKE, such as nvidia-h100-80gb")
    parser.add_argument("--topology", help="topology of a TPU slice, such as 2x2x2")
    parser.add_argument("--slices", type=_positive, default=1, help="number of TPU slices")
    parser.add_argument("--chips-per-host", type=_positive, help="TPUs per machine (default 4)")
    parser.add_argument("--nodes", type=_positive, default=2, help="number of machines with GPUs")
    parser.add_argument("--gpus", type=_positive, default=8, help="GPUs per machine")
    parser.add_argument("--spot", action="store_true", help="use spot machines")
    parser.add_argument("--service-account", default="default", help="Kubernetes service account")
    parser.add_argument("--claim", help="persistent volume claim to mount as /mnt/shared")
    parser.add_argument(
        "--max-restarts", type=_positive, default=10, help="restarts after failures"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the manifest only")
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, help="after --: the program and its arguments"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    args.command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not args.command:
        parser.error("the command is missing: give it after --.")
    try:
        text = manifest(args)
    except ValueError as error:
        parser.error(str(error))
    apply = ["kubectl", "apply", "-f", "-"]
    if args.dry_run:
        print(f"# {shlex.join(apply)}\n{text}", end="")
        return 0
    return subprocess.run(apply, input=text, text=True, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
