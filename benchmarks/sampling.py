"""Seconds and network evaluations of the samplers, on one network with random weights.

    python -m benchmarks.sampling [--batch=4] [--length=256] [--steps=256,1024] [--json]

Every sampler is compiled first and then draws the same number of sequences. The last column is its
time relative to event_driven: ratio_to_X in JSON, above 1 if event_driven is faster. `torch_cached`
is a plain PyTorch loop of the published cached rule with the same weights; it is left out if torch
is not installed (`pip install -e '.[bench]'`). `ancestral` is the plain loop: the network and its
whole head at every step.
"""

import functools
import importlib.util
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from ddm_jax import cli
from ddm_jax.config import ModelConfig
from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.models.network import make_network
from ddm_jax.samplers import SAMPLERS
from ddm_jax.samplers.signature import SampleSpec

OURS = ("event_driven", "cached", "first_hitting", "autoregressive", "ancestral")
NO_STEPS = ("first_hitting", "autoregressive")  # one step per token, --steps is ignored

_BATCH = flags.DEFINE_integer("batch", 4, "Sequences sampled at once.")
_LENGTH = flags.DEFINE_integer("length", 256, "Tokens of a sequence.")
_STEPS = flags.DEFINE_list("steps", ["256", "1024"], "Numbers of steps.")
_WIDTH = flags.DEFINE_integer("width", 256, "Width of the network.")
_DEPTH = flags.DEFINE_integer("depth", 6, "Layers of the network.")
_HEADS = flags.DEFINE_integer("heads", 4, "Attention heads of the network.")
_VOCAB = flags.DEFINE_integer("vocab", 8192, "Tokens of the vocabulary.")
_ONLY = flags.DEFINE_list("only", [], "Samplers to compare with event_driven; all if empty.")
_JSON = cli.define_json()

Run = Callable[[int, int], tuple[float, np.ndarray]]  # (steps, seed) -> seconds, nfe[B]


def main(argv: list[str]) -> None:
    """Prints one row for each sampler and number of steps."""
    del argv
    config = ModelConfig(
        width=_WIDTH.value, depth=_DEPTH.value, heads=_HEADS.value, time="none", norm_bias=False
    )
    network = make_network(config, _VOCAB.value)
    # new weights give all tokens the same probability; a larger head makes them differ
    params = network.init(jax.random.key(0))
    shape = params["head"]["kernel"].shape
    params["head"]["kernel"] = 0.1 * jax.random.normal(jax.random.key(1), shape)

    runs: dict[str, Run] = {name: ours(name, network.apply, params) for name in OURS}
    if importlib.util.find_spec("torch"):
        runs["torch_cached"] = torch_cached(params, config)
    names = ["event_driven", *(n for n in runs if n != "event_driven")]
    names = [n for n in names if n == "event_driven" or n in (_ONLY.value or names)]
    print(
        f"{'sampler':16} {'steps':>6} {'seconds':>8} {'NFE':>7} {'max':>5} {'/ event_driven':>18}"
    )
    result: dict[str, dict[str, Any]] = {}
    for steps in map(int, _STEPS.value):
        rows = {}
        for name in names:
            seconds, nfe = runs[name](steps, 1)
            rows[name] = {"seconds": seconds, "nfe": float(nfe.mean()), "nfe_max": int(nfe.max())}
            ratio = seconds / rows["event_driven"]["seconds"]
            if name != "event_driven":
                rows["event_driven"][f"ratio_to_{name}"] = ratio
            shown = "-" if name in NO_STEPS else steps
            print(
                f"{name:16} {shown:>6} {seconds:8.2f} {nfe.mean():7.1f} {nfe.max():5} {ratio:18.2f}"
            )
        result[str(steps)] = rows
    if _JSON.value:
        print(json.dumps(result))


def ours(name: str, apply: Callable, params: dict) -> Run:
    """One of our samplers; compiled at its first call, for any number of steps."""
    process = Absorbing(SCHEDULES["log_linear"].make(), _VOCAB.value)
    prompt = jnp.zeros((_BATCH.value, _LENGTH.value), jnp.int32)

    @functools.cache
    def compiled() -> Callable:
        sample = jax.jit(functools.partial(SAMPLERS[name].sample, apply, process=process))
        arguments = (params, jax.random.key(0), prompt, prompt > 0)
        return sample.lower(*arguments, spec=SampleSpec(jnp.int32(1))).compile()

    def run(steps: int, seed: int) -> tuple[float, np.ndarray]:
        arguments = (params, jax.random.key(seed), prompt, prompt > 0)
        call = compiled()
        begin = time.perf_counter()
        tokens, stats = call(*arguments, spec=SampleSpec(jnp.int32(steps)))
        assert (np.asarray(tokens) < _VOCAB.value).all()
        return time.perf_counter() - begin, np.asarray(stats.nfe)

    return run


def torch_cached(params: dict, config: ModelConfig) -> Run:
    """The published cached rule: the network runs again only for sequences that changed.

    RADD (arXiv:2406.03736, section 4.1): the network is evaluated again for the sequences that
    the previous step changed, and every masked position draws from p(x0) times the update rate,
    with the remaining probability on the mask.
    """
    import torch
    from torch.nn import functional as F

    head = jax.tree.map(lambda x: torch.tensor(np.asarray(x)), params)
    depth, width, heads = config.depth, config.width, config.heads
    blocks = [jax.tree.map(lambda x, i=i: x[i], head["blocks"]) for i in range(depth)]
    batch, length, vocab = _BATCH.value, _LENGTH.value, _VOCAB.value
    angle = torch.arange(length)[:, None] * 10_000.0 ** (
        -torch.arange(0, width // heads, 2) / (width // heads)
    )
    cos, sin = angle.cos(), angle.sin()

    def rotate(x: Any) -> Any:
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)

    def probabilities(tokens: Any) -> Any:
        x = head["embed"]["embedding"][tokens]
        n = len(tokens)
        for block in blocks:
            h = F.layer_norm(x, (width,), block["norm1"]["scale"])
            qkv = (h @ block["qkv"]["kernel"].reshape(width, -1)).view(n, length, 3, heads, -1)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            h = F.scaled_dot_product_attention(rotate(q), rotate(k), v)
            x = x + h.transpose(1, 2).reshape(n, length, width) @ block["out"]["kernel"].reshape(
                width, width
            )
            h = F.layer_norm(x, (width,), block["norm2"]["scale"])
            h = F.gelu(h @ block["mlp_in"]["kernel"] + block["mlp_in"]["bias"], approximate="tanh")
            x = x + h @ block["mlp_out"]["kernel"] + block["mlp_out"]["bias"]
        x = F.layer_norm(x, (width,), head["final_norm"]["scale"])
        return (x @ head["head"]["kernel"][:, :vocab] + head["head"]["bias"][:vocab]).softmax(-1)

    @torch.inference_mode()
    def run(steps: int, seed: int) -> tuple[float, np.ndarray]:
        torch.manual_seed(seed)
        begin = time.perf_counter()
        x = torch.full((batch, length), vocab)
        changed = torch.ones(batch, dtype=torch.bool)
        p, nfe = torch.empty(batch, length, vocab), torch.zeros(batch, dtype=torch.int64)
        for i in range(steps):
            if changed.any():
                p[changed] = probabilities(x[changed])
                nfe += changed
            rate = 1 / (steps - i)  # (alpha_s - alpha_t) / (1 - alpha_t), log-linear
            masked = x == vocab
            chances = p[masked] * rate
            chances = torch.cat([chances, torch.full((len(chances), 1), 1 - rate)], dim=1)
            exponential = 1e-10 - (torch.rand_like(chances) + 1e-10).log()
            new = x.clone()
            new[masked] = (chances / exponential).argmax(dim=1)
            changed, x = (new != x).any(dim=1), new
        return time.perf_counter() - begin, nfe.numpy()

    return run


if __name__ == "__main__":
    app.run(main)
