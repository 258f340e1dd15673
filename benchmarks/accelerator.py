"""Benchmarks of an accelerator in one run of a few minutes, without a data set.

    python -m benchmarks.accelerator [--toy] [--parts=matmul,...] [--no-torch] [--json]

GPT-2-small's size (12 layers of width 768, length 1,024, V = 50,257, bfloat16), RADD's t-DCE with
AdamW, clipping and averaged weights, on the first device:

    matmul     rate of a bfloat16 matmul on this device, the reference for MFU
    attention  each implementation compared with the plain one, forward and gradient, and its time
    train      step time, tokens/s, MFU; the same in PyTorch (SDPA, compile), if it is installed
    largest    the largest batch that fits, of ours and of PyTorch
    sampling   1,024 tokens in 1,024 steps at batch 32: the cached samplers, and the uncached loop
               (`ancestral`), which is timed for a tenth of the steps and multiplied by ten

MFU counts the matmuls of forward and backward pass, 6 N + 12 L T D per token, with the head at all
positions as in PyTorch, although ours reads it only at the masked ones; `mfu_done` counts those.
--toy is for a try on a CPU. Needs jax, flax, optax, ml-collections, absl-py and numpy, and none of
this project's other dependencies.
"""

import functools
import json
import math
import time
import traceback
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax import Array

from benchmarks.peers.ours import Ours, our_step
from ddm_jax import cli
from ddm_jax.config import Config, ModelConfig, ObjectiveConfig, OptimConfig, TrainConfig
from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.models.attention import ATTENTION
from ddm_jax.models.network import make_network
from ddm_jax.objectives import OBJECTIVES
from ddm_jax.samplers import SAMPLERS
from ddm_jax.samplers.signature import SampleSpec

_TOY = flags.DEFINE_bool("toy", False, "A tiny network and a few steps.")
_PARTS = flags.DEFINE_list(
    "parts", ["matmul", "attention", "train", "largest", "sampling"], "Parts to run, in this order."
)
_TORCH = flags.DEFINE_bool("torch", True, "Time PyTorch too, if it is installed.")
_BATCH = flags.DEFINE_integer("batch", 32, "Sequences of a training batch.")
_REMAT = flags.DEFINE_string("remat", "none", "Rematerialisation of our network: none, dots, full.")
_JSON = cli.define_json()


def main(argv: list[str]) -> None:
    """Prints each part when it ends; a part that fails is reported, and the others still run."""
    del argv
    result: dict[str, Any] = {"device": jax.devices()[0].device_kind, "toy": _TOY.value}
    print(f"{result['device']}, jax {jax.__version__}")
    for name in _PARTS.value:
        begin = time.perf_counter()
        try:
            result[name] = PARTS[name](result)
        except Exception as error:
            traceback.print_exc()
            result[name] = {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
        jax.clear_caches()
        print(f"{name} ({time.perf_counter() - begin:.0f} s)")
        for key, value in result[name].items():
            print(f"    {key:32} {value if isinstance(value, str) else format(value, ',.4g')}")
    if _JSON.value:
        print(json.dumps(result))


def sizes() -> tuple[ModelConfig, int, int, int]:
    """(network, vocabulary size, length, batch size)."""
    dtype = {"compute_dtype": "float32" if _TOY.value else "bfloat16", "remat": _REMAT.value}
    if _TOY.value:
        return ModelConfig(width=64, depth=2, heads=2, time="none", **dtype), 500, 64, 4
    model = ModelConfig(width=768, depth=12, heads=12, time="none", **dtype)
    return model, 50_257, 1_024, _BATCH.value


def seconds_of(run: Callable[[], Any], turns: int = 5) -> float:
    """Median seconds of a call; the first call is left out."""
    jax.block_until_ready(run())
    found = []
    for _ in range(turns):
        begin = time.perf_counter()
        jax.block_until_ready(run())
        found.append(time.perf_counter() - begin)
    return float(np.median(found))


def matmul(so_far: dict[str, Any]) -> dict[str, float]:
    """FLOP/s of a square matmul in bfloat16, accumulated in float32; several in one program."""
    del so_far
    n, times = (512, 2) if _TOY.value else (8192, 16)
    a = jax.random.normal(jax.random.key(0), (n, n), jnp.bfloat16)

    @jax.jit
    def chain(a: Array) -> Array:
        return jax.lax.fori_loop(0, times, lambda _, x: jnp.dot(a, x) / n**0.5, a)

    return {"flops_per_s": times * 2 * n**3 / seconds_of(lambda: chain(a))}


def attention(so_far: dict[str, Any]) -> dict[str, float | str]:
    """Seconds, and the largest distance of outputs and gradients from plain float32 attention."""
    del so_far
    model, _, length, batch = sizes()
    shape = (batch, length, model.heads, model.width // model.heads)
    exact = [jax.random.normal(key, shape) for key in jax.random.split(jax.random.key(0), 3)]
    narrow = [x.astype(model.compute_dtype) for x in exact]
    found: dict[str, float | str] = {}
    for causal in (False, True):

        def outputs(name: str, given: list[Array], causal: bool = causal) -> Callable:
            @jax.jit
            def run(*given: Array) -> Any:
                def mean(*given: Array) -> tuple[Array, Array]:
                    out = ATTENTION[name](*given, None, causal)
                    return (out.astype(jnp.float32) ** 2).sum(), out

                return jax.grad(mean, (0, 1, 2), has_aux=True)(*given)

            return functools.partial(run, *given)

        # exact attention holds all scores, so only two sequences
        wanted = outputs("plain", [x[:2].astype(jnp.float32) for x in narrow])()
        for name in ("plain", "auto", "xla", "cudnn"):
            label = f"{name}{'_causal' if causal else ''}"
            try:
                differ = max(
                    float(jnp.abs(x[:2].astype(jnp.float32) - y).max() / jnp.abs(y).max())
                    for x, y in zip(
                        jax.tree.leaves(outputs(name, narrow)()),
                        jax.tree.leaves(wanted),
                        strict=True,
                    )
                )
                found[f"{label}_differs"] = differ
                found[f"{label}_s"] = seconds_of(outputs(name, narrow))
            except Exception as error:
                found[label] = f"does not run on this device: {type(error).__name__}"
    return found


def config_of(batch: int) -> tuple[Config, int, int]:
    """(config of RADD's t-DCE, vocabulary size, length)."""
    model, vocab, length, _ = sizes()
    config = Config(
        model=model,
        objective=ObjectiveConfig(name="radd_t_dce"),
        optim=OptimConfig(),
        train=TrainConfig(batch_size=batch),
    )
    return config, vocab, length


def our_program(batch: int) -> Ours:
    """Our compiled training step."""
    config, vocab, length = config_of(batch)
    process = Absorbing(SCHEDULES["log_linear"].make(), vocab)
    network = make_network(config.model, vocab)
    return our_step(config, process, OBJECTIVES["radd_t_dce"], network, length)


def our_seconds(batch: int, turns: int = 10) -> tuple[float, float]:
    """(seconds per step, reserved bytes)."""
    ours = our_program(batch)
    state, metrics = ours.program(ours.start(), ours.batch)
    float(metrics["loss"])
    begin = time.perf_counter()
    for _ in range(turns):
        state, metrics = ours.program(state, ours.batch)
    assert math.isfinite(float(metrics["loss"]))
    return (time.perf_counter() - begin) / turns, ours.reserved_bytes


def torch_seconds(batch: int, turns: int = 10) -> float:
    """Seconds per step of benchmarks/peers/pytorch.py, compiled on a GPU."""
    import torch

    from benchmarks.peers.pytorch import Network, Trainer

    config, vocab, length = config_of(batch)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    model = Network(config.model, vocab, length).to(device)
    narrow = config.model.compute_dtype == "bfloat16"
    trainer = Trainer(model, vocab, compile=device == "cuda", bfloat16=narrow)
    tokens = torch.randint(0, vocab, (batch, length), device=device)
    for _ in range(2):
        float(trainer.step(tokens))
    begin = time.perf_counter()
    for _ in range(turns):
        loss = trainer.step(tokens)
    assert math.isfinite(float(loss))
    return (time.perf_counter() - begin) / turns


def torch_is_there() -> bool:
    """Whether PyTorch is asked for, installed, and has the same kind of device as jax."""
    try:
        import torch
    except ImportError:
        return False
    return _TORCH.value and torch.cuda.is_available() == (jax.default_backend() == "gpu")


def train(so_far: dict[str, Any]) -> dict[str, float]:
    """Tokens/s of ours and of PyTorch, one after the other, and MFU."""
    model, vocab, length, batch = sizes()
    turns = 3 if _TOY.value else 10
    seconds, reserved = our_seconds(batch, turns)
    n = model.depth * (4 + 2 * model.mlp_ratio) * model.width**2
    head, scores = model.width * vocab, 2 * model.depth * length * model.width
    tokens_per_s = batch * length / seconds
    found = {"step_s": seconds, "tokens_per_s": tokens_per_s, "reserved_bytes": reserved}
    rate = so_far.get("matmul", {}).get("flops_per_s")
    if rate:
        found["mfu"] = tokens_per_s * 6 * (n + head + scores) / rate
        found["mfu_done"] = tokens_per_s * 6 * (n + head / 2 + scores) / rate
    if torch_is_there():
        theirs = torch_seconds(batch, turns)
        again, _ = our_seconds(batch, turns)
        found |= {
            "torch_tokens_per_s": batch * length / theirs,
            "ratio_to_torch": theirs / seconds,
            "ratio_to_torch_again": theirs
            / again,  # ours again afterwards: shows how much times drift
        }
    return found


def largest(so_far: dict[str, Any]) -> dict[str, float]:
    """The largest batch that fits, a multiple of 16; ours is found from what XLA reserves."""
    del so_far
    if _TOY.value or jax.default_backend() != "gpu":
        return {"skipped": "only on a GPU"}
    limit = jax.devices()[0].memory_stats()["bytes_limit"]
    found = {"bytes_limit": limit}
    (a, low), (b, high) = ((n, our_seconds(n, 1)[1]) for n in (16, 48))
    each = (high - low) / (b - a)
    guess = int((limit - low) / each + a) // 16 * 16
    found["largest_batch"] = next(
        (n for n in range(guess, 0, -16) if fits(functools.partial(our_seconds, n, 1))), 0
    )
    if torch_is_there():
        import torch

        low, high = 16, 4096
        while high - low > 16:  # low fits, high does not
            middle = (low + high) // 32 * 16
            low, high = (
                (middle, high)
                if fits(functools.partial(torch_seconds, middle, 1))
                else (low, middle)
            )
            torch.cuda.empty_cache()
        found |= {"torch_largest_batch": low, "ratio_to_torch": found["largest_batch"] / low}
    return found


def fits(run: Callable[[], Any]) -> bool:
    """Whether a call does not run out of memory."""
    try:
        run()
    except Exception as error:
        if "memory" not in str(error).lower() and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return False
    return True


def sampling(so_far: dict[str, Any]) -> dict[str, float]:
    """Seconds of a batch of samples, and the ratio of the uncached loop's seconds to them."""
    del so_far
    model, vocab, length, _ = sizes()
    batch, steps, part = (2, 64, 1) if _TOY.value else (32, 1024, 10)
    network = make_network(model, vocab)
    params = network.init(jax.random.key(0))
    shape = params["head"]["kernel"].shape
    params["head"]["kernel"] = 0.1 * jax.random.normal(jax.random.key(1), shape)
    process = Absorbing(SCHEDULES["log_linear"].make(), vocab)
    prompt = jnp.zeros((batch, length), jnp.int32)
    found: dict[str, float] = {}
    for name in ("event_driven", "cached", "ancestral"):
        sample = jax.jit(functools.partial(SAMPLERS[name].sample, network.apply, process=process))
        share = part if name == "ancestral" else 1
        spec = SampleSpec(jnp.int32(steps // share))
        arguments = (params, jax.random.key(2), prompt, prompt > 0)
        compiled = sample.lower(*arguments, spec=spec).compile()
        seconds = seconds_of(lambda c=compiled, a=arguments, s=spec: c(*a, spec=s)[0], 1) * share
        found[f"{name}_s"] = seconds
        if name != "ancestral":
            found[f"{name}_tokens_per_s"] = batch * length / seconds
    for name in ("event_driven", "cached"):
        found[f"{name}_ratio_to_ancestral"] = found["ancestral_s"] / found[f"{name}_s"]
    return found


PARTS = {f.__name__: f for f in (matmul, attention, train, largest, sampling)}


if __name__ == "__main__":
    app.run(main)
