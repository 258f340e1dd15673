"""Starts a training job on GKE: makes a JobSet from a template and hands it to kubectl.

    python launch/gke.py --name=radd --image=IMAGE --tpu=v5p --topology=2x2x2 -- \
        python -m ddm_jax.main --config=configs/radd_small.py --workdir=radd \
        --config.train.checkpoints=gs://BUCKET/radd
    python launch/gke.py --name=radd --image=IMAGE --gpu=nvidia-h100-80gb --nodes=2 -- ...

Every pod runs the command (through launch/resumable.sh, which is in the image). Preempted or
stopped, the job starts again as often as it must; failed, --max-restarts times; after a mistake in
the command (exit code 2) not at all. Needs JobSet 0.10 or later in the cluster: docs/cloud.md.
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
CHIPS_PER_HOST = 4  # of the machines that slices of several hosts are made of

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
          - action: FailJob  # stopped and saved
            onExitCodes: {containerName: train, operator: In, values: [75]}
          - action: FailJob  # preempted, drained or evicted
            onPodConditions: [{type: DisruptionTarget, status: "True"}]"""
SPOT = """\
              cloud.google.com/gke-spot: "true"
            tolerations:
            - {key: cloud.google.com/gke-spot, operator: Exists, effect: NoSchedule}"""

# a folder that all pods share, beside what a template has
SHARED = {
    "$volumes_key": "            volumes:",
    "$volumes": "            - {name: shared, persistentVolumeClaim: {claimName: $claim}}",
    "$mounts_key": "              volumeMounts:",
    "$mounts": "              - {name: shared, mountPath: /mnt/shared}",
}


def manifest(args: argparse.Namespace) -> str:
    """The JobSet as YAML.

    Args:
      args: the parsed flags; `args.command` is run by every pod.

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
                f"--{flag}={name} is not a name: give up to 40 lower-case letters, digits and "
                "hyphens, a letter first and no hyphen last."
            )
    values = {
        "name": args.name,
        "image": json.dumps(args.image),
        "service_account": args.service_account,
        # Kubernetes would replace $(NAME); JSON is YAML
        "command": json.dumps(
            ["bash", "launch/resumable.sh", *(word.replace("$(", "$$(") for word in args.command)]
        ),
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
            f"--topology={args.topology} is not one of {args.tpu}: give {dimensions} numbers such "
            f"as {example}."
        )
    total = math.prod(map(int, args.topology.split("x")))
    chips = args.chips_per_host or min(total, CHIPS_PER_HOST)
    if total % chips:
        raise ValueError(
            f"--topology={args.topology} has {total} chips, which --chips-per-host={chips} does "
            "not divide: give 1, 4 or 8."
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
    parser.add_argument("--name", required=True, help="of the job")
    parser.add_argument("--image", required=True, help="made with launch/Dockerfile")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--tpu", choices=list(TPUS))
    which.add_argument("--gpu", help="label of the accelerator, such as nvidia-h100-80gb")
    parser.add_argument("--topology", help="of a TPU slice, such as 2x2x2")
    parser.add_argument("--slices", type=_positive, default=1, help="of TPUs")
    parser.add_argument("--chips-per-host", type=_positive, help="TPUs of a machine (default 4)")
    parser.add_argument("--nodes", type=_positive, default=2, help="machines with GPUs")
    parser.add_argument("--gpus", type=_positive, default=8, help="of a machine")
    parser.add_argument("--spot", action="store_true", help="on spot machines")
    parser.add_argument("--service-account", default="default", help="of Kubernetes")
    parser.add_argument("--claim", help="persistent volume claim of a folder, as /mnt/shared")
    parser.add_argument("--max-restarts", type=_positive, default=10, help="after failures")
    parser.add_argument("--dry-run", action="store_true", help="print the manifest, do nothing")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="after --: program, arguments")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
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
