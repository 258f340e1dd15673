"""Converts weights: published ones to a work directory, and those of a run to published files.

    python -m ddm_jax.convert --from=mdlm --checkpoint=kuleshov-group/mdlm-owt --workdir=work/mdlm
    python -m ddm_jax.convert --to=mdlm --workdir=work/mdlm --out=published
    python -m ddm_jax.convert --workdir=work/mdlm --out=weights      # the bare weights, as ours

Each is written as a whole or not at all: a work directory for sample, evaluate, translate and
--config.train.init_from; or a folder like the hub's, or a Lightning checkpoint. The bare weights
are about a quarter of a training checkpoint. docs/interop.md has the details.
"""

from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags

from ddm_jax import cli
from ddm_jax.data.tokenizers import tokenizer as tokenizers
from ddm_jax.errors import UserError
from ddm_jax.interop.files import open_published
from ddm_jax.interop.from_published import MODEL_CARD, write_workdir
from ddm_jax.interop.release_configs import config_of_release
from ddm_jax.interop.releases import RELEASES
from ddm_jax.interop.to_published import write_bare_weights, write_release
from ddm_jax.parallel.layouts import dp
from ddm_jax.runs.run import WEIGHTS, open_run
from ddm_jax.settle import settle

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this command."""
    with cli.group("From published weights"):
        flags.DEFINE_enum(
            "from", None, list(RELEASES), "published weights of this kind to --workdir"
        )
        flags.DEFINE_string(
            "checkpoint", "", "a file, a folder, or OWNER/NAME of a hub that can be reached"
        )
        flags.DEFINE_string(
            "tokenizer",
            "",
            "a kind (docs/data.md) or a folder that has one; the recipe's by default",
        )
        cli.define_config()
    with cli.group("The run"):
        flags.DEFINE_string("workdir", "", "folder of the run; with --from the one to write")
        flags.DEFINE_string(
            "weights",
            "ema",
            f"one of {', '.join(WEIGHTS)}; with --from ema or last, if it has both",
        )
    with cli.group("Output"):
        flags.DEFINE_enum("to", None, list(RELEASES), "the run's weights to --out, in this layout")
        flags.DEFINE_string(
            "out", "", "folder to write, or with --to a Lightning .ckpt; it must not exist"
        )


def main(argv: Sequence[str]) -> None:
    """Reads the flags and writes one folder or file."""
    del argv
    if not FLAGS.workdir:
        raise UserError("--workdir is missing: give the folder of a run, or with --from a new one.")
    workdir = Path(FLAGS.workdir).expanduser().absolute()
    if FLAGS["from"].value:
        return _convert_published(FLAGS["from"].value, workdir)
    out = Path(FLAGS.out).expanduser().absolute()
    if not FLAGS.out or out.exists():
        raise UserError(f"--out={FLAGS.out} must be a folder or file that does not exist.")
    run = open_run(workdir, FLAGS.weights, dp(jax.local_devices()[:1]))
    origin = f"{FLAGS.weights} weights of step {run.step}"
    if FLAGS.to:
        size = write_release(FLAGS.to, run, out, f"{origin} of {workdir}")
        print(f"Wrote {out}: {origin} of {workdir} in the layout of {FLAGS.to}, {size:,} bytes")
    else:
        size = write_bare_weights(workdir, run, FLAGS.weights, out)
        print(f"Wrote {out}: {origin}, {size:,} bytes")
    return None


def _convert_published(name: str, workdir: Path) -> None:
    if FLAGS.out or FLAGS.to:
        raise UserError(f"--from={name} writes --workdir: leave --out and --to empty.")
    if not FLAGS.checkpoint or workdir.exists():
        raise UserError(
            f"--from={name} needs --checkpoint=FILE_OR_FOLDER, and a --workdir that does not exist."
        )
    if FLAGS.weights not in ("ema", "last"):
        raise UserError(f"--weights={FLAGS.weights} does not apply to --from: give ema or last.")
    release = RELEASES[name]
    published = open_published(FLAGS.checkpoint, FLAGS.weights, release.scheme.buffers)
    if FLAGS["config"].present:
        config = settle(cli.read_config(FLAGS.config))
    else:
        config = config_of_release(release, published.path)
    tokenizer = _open_tokenizer(FLAGS.tokenizer or config.data.tokenizer)
    source = write_workdir(name, published, config, tokenizer, workdir)
    print(
        f"Wrote {workdir}: {source['parameters']:,} parameters of {published.path} (sha256 "
        f"{published.sha256[:12]}); {MODEL_CARD} says how to evaluate and sample them"
    )


def _open_tokenizer(spec: str) -> tokenizers.Tokenizer:
    folder = Path(spec).expanduser()
    if folder.is_dir():
        return tokenizers.load(folder)
    if tokenizers.is_trained(spec):
        raise UserError(
            f"--tokenizer={spec} is trained on a text: give the folder of a set prepared with it."
        )
    return tokenizers.pretrained_tokenizer(spec)


if __name__ == "__main__":
    cli.run(main, define_flags)
