"""Discrete diffusion language models in JAX.

    import ddm_jax

    ddm_jax.train("radd_tiny", "work/tiny", overrides={"train.steps": 400})
    run = ddm_jax.open_run("work/tiny")
    run.metrics["loss"]
    ddm_jax.generate(run, num=2, prefix="The people ")
    ddm_jax.likelihood(run, num=64)

Names are imported where they are first used: `import ddm_jax` imports neither jax nor flax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddm_jax.errors import UserError
    from ddm_jax.evaluation.likelihood.measure import likelihood
    from ddm_jax.evaluation.likelihood.monte_carlo import Likelihood
    from ddm_jax.generation.text import Generated, generate
    from ddm_jax.runs.metrics import Metrics
    from ddm_jax.runs.run import Run, open_run
    from ddm_jax.training.loop import Outcome, train

__version__ = "0.3.0"

# name -> the module that has it
_MODULES = {
    "Generated": "ddm_jax.generation.text",
    "Likelihood": "ddm_jax.evaluation.likelihood.monte_carlo",
    "Metrics": "ddm_jax.runs.metrics",
    "Outcome": "ddm_jax.training.loop",
    "Run": "ddm_jax.runs.run",
    "UserError": "ddm_jax.errors",
    "generate": "ddm_jax.generation.text",
    "likelihood": "ddm_jax.evaluation.likelihood.measure",
    "open_run": "ddm_jax.runs.run",
    "train": "ddm_jax.training.loop",
}

__all__ = [
    "Generated",
    "Likelihood",
    "Metrics",
    "Outcome",
    "Run",
    "UserError",
    "__version__",
    "generate",
    "likelihood",
    "open_run",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'ddm_jax' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
