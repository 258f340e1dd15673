"""Weights in and out (docs/interop.md).

    python -m ddm_jax.convert --from=mdlm --checkpoint=DIR_OR_FILE --workdir=W     published -> ours
    python -m ddm_jax.convert --to=mdlm --workdir=W --out=FOLDER_OR_FILE.ckpt      ours -> published
    python -m ddm_jax.convert --workdir=W --out=FOLDER            the bare weights of a run, as ours

What is written is whole or not there: a work directory that sample, evaluate and translate take,
and --config.train.init_from; or a folder as the hub has it, or a Lightning checkpoint. The bare
weights are about a quarter of a training checkpoint.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags

from ddm_jax import cli
from ddm_jax.config import TrainConfig
from ddm_jax.data.tokenizers import tokenizer as tokenizers
from ddm_jax.errors import UserError
from ddm_jax.interop.files import open_published
from ddm_jax.interop.from_published import CARD, bring
from ddm_jax.interop.releases import RELEASES, settled
from ddm_jax.interop.to_published import give
from ddm_jax.parallel.layouts import dp
from ddm_jax.runs.checkpoint import folder_of, save_weights
from ddm_jax.runs.files import write_atomically
from ddm_jax.runs.record import TOKENIZER
from ddm_jax.runs.run import WEIGHTS, open_run
from ddm_jax.settle import settle

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_enum("from", None, list(RELEASES), "published weights of this kind to --workdir")
    flags.DEFINE_enum("to", None, list(RELEASES), "the run's weights to --out, in this layout")
    flags.DEFINE_string(
        "checkpoint", "", "of --from: a file, a folder, or OWNER/NAME of a hub that can be reached"
    )
    flags.DEFINE_string("workdir", "", "folder of the run; with --from the one to write")
    flags.DEFINE_string(
        "weights", "ema", f"one of {', '.join(WEIGHTS)}; with --from ema or last, if it has both"
    )
    flags.DEFINE_string(
        "out", "", "folder to write, or with --to a Lightning .ckpt, which is not there yet"
    )
    flags.DEFINE_string(
        "tokenizer",
        "",
        "of --from: a kind (docs/data.md) or a folder that has one; the recipe's by default",
    )
    cli.define_config()


def main(argv: Sequence[str]) -> None:
    """Reads the flags and writes one folder."""
    del argv
    if not FLAGS.workdir:
        raise UserError("--workdir is missing: give the folder of a run, or with --from a new one.")
    workdir = Path(FLAGS.workdir).expanduser().absolute()
    if FLAGS["from"].value:
        return _bring(FLAGS["from"].value, workdir)
    out = Path(FLAGS.out).expanduser().absolute()
    if not FLAGS.out or out.exists():
        raise UserError(f"--out={FLAGS.out} must be a folder or file that is not there yet.")
    if FLAGS.to:
        run = open_run(workdir, FLAGS.weights, dp(jax.local_devices()[:1]))
        origin = f"{FLAGS.weights} weights of step {run.step} of {workdir}"
        size = give(FLAGS.to, run, out, origin)
        print(f"Wrote {out}: {origin} in the layout of {FLAGS.to}, {size:,} bytes")
        return None
    return _bare(workdir, out)


def _bring(name: str, workdir: Path) -> None:
    if FLAGS.out or FLAGS.to:
        raise UserError(f"--from={name} writes --workdir: leave --out and --to empty.")
    if not FLAGS.checkpoint or workdir.exists():
        raise UserError(
            f"--from={name} needs --checkpoint=FILE_OR_FOLDER, and a --workdir that is not there."
        )
    if FLAGS.weights not in ("ema", "last"):
        raise UserError(f"--weights={FLAGS.weights} is not for --from: give ema or last.")
    release = RELEASES[name]
    found = open_published(FLAGS.checkpoint, FLAGS.weights, release.scheme.derived)
    given = FLAGS["config"].present
    config = settle(cli.read_config(FLAGS.config)) if given else settled(release, found.path)
    tokenizer = _tokenizer(FLAGS.tokenizer or config.data.tokenizer)
    source = bring(name, found, config, tokenizer, workdir)
    print(
        f"Wrote {workdir}: {source['parameters']:,} parameters of {found.path} (sha256 "
        f"{found.sha256[:12]}); {CARD} says how to evaluate and sample them"
    )


def _tokenizer(spec: str) -> tokenizers.Tokenizer:
    folder = Path(spec).expanduser()
    if folder.is_dir():
        return tokenizers.load(folder)
    if tokenizers.is_trained(spec):
        raise UserError(
            f"--tokenizer={spec} is made from a text: give the folder of a set prepared with it."
        )
    return tokenizers.pretrained_tokenizer(spec)


def _bare(workdir: Path, out: Path) -> None:
    """The weights of a run by themselves, as a work directory."""
    run = open_run(workdir, FLAGS.weights, dp(jax.local_devices()[:1]))
    record = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
    record["config"]["train"]["checkpoints"] = ""
    record["weights"] = {"of": FLAGS.weights, "from": str(workdir), "step": run.step}
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    if (workdir / TOKENIZER).is_dir():  # of converted weights
        shutil.copytree(workdir / TOKENIZER, unfinished / TOKENIZER)
    save_weights(folder_of(unfinished, TrainConfig()), run.step, run.params)
    write_atomically(unfinished / "config.json", json.dumps(record, indent=2) + "\n")
    unfinished.rename(out)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"Wrote {out}: {FLAGS.weights} weights of step {run.step}, {size:,} bytes")


if __name__ == "__main__":
    cli.run(main, define_flags)
