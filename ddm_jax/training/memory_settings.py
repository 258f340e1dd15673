"""Which settings of a config lower the memory that training needs, with values to set."""

from collections.abc import Mapping
from typing import Any

from ddm_jax.config import Config
from ddm_jax.costs.memory import DeviceMemory
from ddm_jax.parallel.layouts import Layout
from ddm_jax.parallel.placement import device_bytes
from ddm_jax.training.state import TrainState

_MARGIN = 0.9  # of the memory that activations may take, since they do not scale exactly
_SHORTEST = 64  # tokens, below which a shorter sequence is not proposed
HALF = 0.5


def activation_share(
    memory_bytes: Mapping[str, int], memory: DeviceMemory, state: TrainState, layout: Layout
) -> float:
    """The share of the activations of a train step that fits; negative if not even the rest does.

    Args:
      memory_bytes: of the compiled step (costs.program).
      memory: of the devices.
      state: without arrays.
      layout: of the step.
    """
    gradients = device_bytes(state.params, layout.param_shardings(state.params))
    activations = max(memory_bytes["temporaries"] - gradients, 1)
    held = memory_bytes["peak"] - activations
    room = min(memory.total / memory.sharing, memory.free / memory.sharing + held)
    return (_MARGIN * room - held) / activations


def step_settings(config: Config, layout: Layout, share: float = HALF) -> str:
    """Settings with which a train step needs less memory: "set a=1, b=2 or c=3".

    Args:
      config: settled.
      layout: of the step.
      share: of the memory of its activations that it may need.
    """
    found = _smaller_activations(config, layout, share) if share > 0 else []
    return _set([*found, *_smaller_state(config, layout, activations=bool(found))])


def state_settings(config: Config, layout: Layout) -> str:
    """Settings with which weights, average and optimizer state need less memory."""
    return _set(_smaller_state(config, layout, activations=False))


def validation_settings(config: Config, layout: Layout) -> str:
    """Settings with which a validation needs less memory."""
    half = config.eval.batch_size // 2
    found = []
    if half and _splits(layout, half):
        found.append(_text("eval.batch_size", half))
    if config.model.kind == "lm" and config.sampler.num > 1:
        found.append(_text("sampler.num", 1))
    return _set(found or _smaller_state(config, layout, activations=False))


def _smaller_activations(config: Config, layout: Layout, share: float) -> list[str]:
    size, parts, length = config.train.batch_size, config.train.microbatches, config.data.length
    fields: dict[str, Any] = {}
    for more in range(parts + 1, size + 1):
        if size % more == 0 and parts / more <= share and _splits(layout, size // more):
            fields["train.microbatches"] = more
            break
    divisor = 2
    while 1 / divisor > share:
        divisor *= 2
    if size % (divisor * parts) == 0 and _splits(layout, size // divisor // parts):
        fields["train.batch_size"] = size // divisor
    if config.model.kind == "lm" and length % divisor == 0 and length // divisor >= _SHORTEST:
        fields["data.length"] = length // divisor
    if config.model.remat == "none":
        fields["model.remat"] = "full"
    return [_text(name, value) for name, value in fields.items()]


def _smaller_state(config: Config, layout: Layout, activations: bool) -> list[str]:
    """Settings that split or shrink the state; a smaller network only if there is no other way."""
    split = layout.name not in ("pmap", "dp") or layout.mesh.size == 1
    found = [] if split else [_text("layout.name", "fsdp")]
    if not activations:
        found += [
            f"a smaller config.model.{name} than {getattr(config.model, name)}"
            for name, least in (("width", 2), ("depth", 1))
            if getattr(config.model, name) > least
        ]
    return found


def _splits(layout: Layout, size: int) -> bool:
    return size % layout.axis_size(*layout.entry.batch_axes) == 0


def _text(name: str, value: Any) -> str:
    return f"config.{name}={value!r}"


def _set(settings: list[str]) -> str:
    *first, last = settings
    return f"set {', '.join(first)} or {last}" if first else f"set {last}"
