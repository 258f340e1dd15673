"""Text from a run that is a language model: `generate(run, num=4, prefix="The people ")`."""

import dataclasses
import html
from collections.abc import Mapping
from dataclasses import dataclass, field

import jax
import numpy as np

from ddm_jax.config import Config
from ddm_jax.data.tokenizers.tokenizer import Tokenizer
from ddm_jax.errors import UserError
from ddm_jax.generation.generate import CompiledSampler, compile_sampler, draw_batches
from ddm_jax.generation.prompts import Prompt, make_prompt
from ddm_jax.generation.request import RANGES, SamplingRequest, check_range
from ddm_jax.parallel.layouts import Layout, local_dp
from ddm_jax.runs.run import OptionValue, Run

BATCH_SIZE = 16


@dataclass(frozen=True)
class TextRequest:
    """What to draw; the arguments of `generate`, in one record.

    Attributes:
      num: number of sequences.
      length: tokens of a sequence; None for the run's.
      prefix, suffix, template: see `generate`.
      temperature: of the draws; None for the run's.
      top_k: draws from the `top_k` best tokens; 0 for all.
      top_p: draws from the best tokens of this total probability.
      sampling: the sampler and the random stream.
    """

    num: int = 4
    length: int | None = None
    prefix: str = ""
    suffix: str = ""
    template: str = ""
    temperature: float | None = None
    top_k: int = 0
    top_p: float = 1.0
    sampling: SamplingRequest = field(default_factory=SamplingRequest)


@dataclass(frozen=True)
class Plan:
    """A request that was checked against a run, before its weights are needed.

    Attributes:
      request: what was asked for.
      config: of the run, with the sampler and the length of the request.
      prompt: of every sequence.
      batch_size: sequences drawn at once.
      layout: what a batch is split over.
    """

    request: TextRequest
    config: Config
    prompt: Prompt
    batch_size: int
    layout: Layout

    def compile_for(self, run: Run) -> CompiledSampler:
        """The compiled sampler; the run's weights are copied to the devices of `layout`."""
        params = jax.device_put(run.params, self.layout.replicated)
        run = dataclasses.replace(run, config=self.config, params=params)
        return compile_sampler(
            run, self.layout, self.batch_size, self.request.top_k, self.request.top_p
        )


@dataclass(frozen=True, repr=False)
class Generated:
    """Sequences that were drawn; prints as the texts.

    Attributes:
      texts: the decoded sequences, prompts included.
      tokens: int32[num, L].
      nfe: int32[num], network evaluations of each sequence.
      seconds: wall-clock time of drawing, compilation excluded.
      compile_s: seconds that compilation took.
    """

    texts: list[str]
    tokens: np.ndarray
    nfe: np.ndarray
    seconds: float
    compile_s: float

    def __repr__(self) -> str:
        pairs = zip(self._heads(), self.texts, strict=True)
        return "\n\n".join(f"--- {head}\n{text}" for head, text in pairs)

    def _repr_html_(self) -> str:
        style = "white-space: pre-wrap; text-align: left"
        rows = [
            f'<tr><td style="text-align: left">{head}</td>'
            f'<td style="{style}">{html.escape(text)}</td></tr>'
            for head, text in zip(self._heads(), self.texts, strict=True)
        ]
        return f"<table>{''.join(rows)}</table>"

    def _heads(self) -> list[str]:
        return [f"sample {i}: {nfe} network evaluations" for i, nfe in enumerate(self.nfe, start=1)]


def generate(
    run: Run,
    num: int = 4,
    steps: int | None = None,
    *,
    prefix: str = "",
    suffix: str = "",
    template: str = "",
    length: int | None = None,
    sampler: str = "auto",
    options: Mapping[str, OptionValue] | None = None,
    temperature: float | None = None,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
) -> Generated:
    """Draws text from a run, as `python -m ddm_jax.sample` does; nothing is written.

    Each call compiles the sampler. To call it often, compile once with
    `generation.generate.compile_sampler` and draw with `draw_batches`.

    Args:
      run: of `open_run`, a language model.
      num: number of sequences.
      steps: of the sampler, where it has a choice; None for the run's.
      prefix: text at the start of every sequence.
      suffix: text at the end of every sequence.
      template: text with blanks to fill in, {{5}} for five tokens and {{}} for all that are left,
        in place of a prefix and a suffix.
      length: tokens of a sequence; None for the run's.
      sampler: a name that fits the run (docs/samplers.md); "auto" for the run's.
      options: of the sampler, such as {"order": "left"}.
      temperature: of the draws; 0 takes the best token; None for the run's.
      top_k: draws from the `top_k` best tokens; 0 for all.
      top_p: draws from the best tokens of this total probability.
      seed: the same seed and batch size draw the same sequences, those of the command.
      batch_size: sequences drawn at once, at most; a batch is split over the local devices.

    Returns:
      The texts, the tokens and the network evaluations of each sequence.

    Raises:
      UserError: the run translates, the sampler or an option does not fit it, the prompt does not
        fit the sequence, or an argument is out of range.
    """
    request = TextRequest(
        num=num,
        length=length,
        prefix=prefix,
        suffix=suffix,
        template=template,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        sampling=SamplingRequest(sampler, steps, options or {}, seed, batch_size),
    )
    plan = plan_text(run.config, run.tokenizer, request)
    compiled = plan.compile_for(run)
    batches = list(draw_batches(compiled, plan.prompt, num, seed))
    tokens = np.concatenate([batch.tokens for batch in batches])
    return Generated(
        texts=[run.tokenizer.decode(row) for row in tokens],
        tokens=tokens,
        nfe=np.concatenate([batch.nfe for batch in batches]),
        seconds=sum(batch.seconds for batch in batches),
        compile_s=compiled.compile_s,
    )


def plan_text(config: Config, tokenizer: Tokenizer, request: TextRequest) -> Plan:
    """Checks a request against the settled config of a run; needs no weights.

    Raises:
      UserError: as `generate`.
    """
    sampling = request.sampling
    for record in (request, sampling):
        for name in RANGES.keys() & {f.name for f in dataclasses.fields(record)}:
            check_range(name, getattr(record, name), RANGES[name])
    if config.model.kind != "lm":
        raise UserError(
            f"The run translates sources (config.model.kind={config.model.kind!r}): use "
            "`python -m ddm_jax.translate`, or in Python translate_sources of "
            "ddm_jax.generation.translation."
        )
    if request.temperature is not None:
        options = {**sampling.options, "temperature": float(request.temperature)}
        sampling = dataclasses.replace(sampling, options=options)
    config = sampling.apply_to(config, request.length)
    prompt = make_prompt(
        tokenizer, config.data.length, request.prefix, request.suffix, request.template
    )
    batch_size = min(sampling.batch_size or BATCH_SIZE, request.num)
    return Plan(request, config, prompt, batch_size, local_dp(batch_size))
