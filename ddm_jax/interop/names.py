"""Which of our parameters is which published tensor: two tables, and the rule to turn the shapes.

Ours are a nested dict whose layers are stacked on a first axis, whose kernels are [in, out] with
axes for the heads, and whose vocabulary is padded. Published ones are one tensor a layer, [out, in]
in a PyTorch Linear and [in, out] in GPT-2's Conv1D, with the vocabulary as it is. The names are
those of SEDD's state_dicts (louaaron/Score-Entropy-Discrete-Diffusion, model/transformer.py), which
RADD, MDLM, BD3-LM and Duo keep, and of openai-community/gpt2.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ddm_jax.errors import UserError

Params = dict[str, Any]
BOTH = ("embed/embedding", "head/kernel", "head/bias")  # with an axis for the vocabulary
# what the shape of a parameter follows from; the rest has config.model.width alone
FIELDS = {
    "embed/embedding": "config.model.width and --tokenizer",
    "head/kernel": "config.model.width and --tokenizer",
    "head/bias": "--tokenizer",
    "positions/embedding": "config.model.max_length and config.model.width",
    "time/mlp_in/kernel": "config.model.cond_width",
    "time/mlp_in/bias": "config.model.cond_width",
    "time/mlp_out/kernel": "config.model.cond_width",
    "time/mlp_out/bias": "config.model.cond_width",
    "final_adaln/kernel": "config.model.cond_width and config.model.width",
    "blocks/adaln/kernel": "config.model.cond_width and config.model.width",
    "blocks/mlp_in/kernel": "config.model.width and config.model.mlp_ratio",
    "blocks/mlp_in/bias": "config.model.width and config.model.mlp_ratio",
    "blocks/mlp_out/kernel": "config.model.width and config.model.mlp_ratio",
}


@dataclass(frozen=True)
class Scheme:
    """How a family of releases names its tensors.

    modules: ours -> theirs, in the order of their network, which is that of its averages; those of
    blocks have their layer in front. leaves: likewise.
    swapped: whether matrices are [out, in]. derived: pattern of tensors that hold no weights.
    absent: parameters of ours that it does not have; they are 0.
    """

    block: str
    modules: Mapping[str, str]
    leaves: Mapping[str, str]
    swapped: bool
    derived: str
    absent: tuple[str, ...] = ()


DIT = Scheme(
    block="blocks.{}.",
    modules={
        "embed": "vocab_embed",
        "time/mlp_in": "sigma_map.mlp.0",
        "time/mlp_out": "sigma_map.mlp.2",
        "blocks/norm1": "norm1",
        "blocks/qkv": "attn_qkv",
        "blocks/out": "attn_out",
        "blocks/norm2": "norm2",
        "blocks/mlp_in": "mlp.0",
        "blocks/mlp_out": "mlp.2",
        "blocks/adaln": "adaLN_modulation",
        "final_norm": "output_layer.norm_final",
        "head": "output_layer.linear",
        "final_adaln": "output_layer.adaLN_modulation",
    },
    leaves={"embedding": "embedding", "kernel": "weight", "scale": "weight", "bias": "bias"},
    swapped=True,
    derived=r"rotary_emb\.inv_freq|block_diff_mask",
)
GPT2 = Scheme(
    block="h.{}.",
    modules={
        "embed": "wte",
        "positions": "wpe",
        "blocks/norm1": "ln_1",
        "blocks/qkv": "attn.c_attn",
        "blocks/out": "attn.c_proj",
        "blocks/norm2": "ln_2",
        "blocks/mlp_in": "mlp.c_fc",
        "blocks/mlp_out": "mlp.c_proj",
        "final_norm": "ln_f",
    },
    leaves={"embedding": "weight", "kernel": "weight", "scale": "weight", "bias": "bias"},
    swapped=False,
    derived=r"h\.\d+\.attn\.(masked_)?bias|lm_head\.weight",
    absent=("head/bias",),
)


@dataclass(frozen=True)
class Tensor:
    """One published tensor: its name, our parameter, the layer (None: not of one), both shapes.

    ours: the shape of the part of our parameter that it is, without the axis of the layers.
    """

    name: str
    path: str
    layer: int | None
    ours: tuple[int, ...]
    shape: tuple[int, ...]
    swapped: bool

    def part(self, param: np.ndarray) -> np.ndarray:
        """The view of our parameter, as published."""
        inside = tuple(map(slice, self.ours))
        return param[inside if self.layer is None else (self.layer, *inside)]

    def to_ours(self, x: np.ndarray) -> np.ndarray:
        """[*shape] -> [*ours]."""
        return (x.T if self.swapped else x).reshape(self.ours)

    def to_theirs(self, x: np.ndarray) -> np.ndarray:
        """[*ours] -> [*shape]."""
        return x.reshape(self.shape[::-1]).T if self.swapped else x.reshape(self.shape)


def tensors(scheme: Scheme, abstract: Params, rows: int) -> list[Tensor]:
    """Every published tensor of a network, by our parameters' shapes; rows: of its vocabulary.

    In the order in which their network has its parameters.
    """
    modules, leaves = list(scheme.modules), list(scheme.leaves)
    first = next(i for i, module in enumerate(modules) if module.startswith("blocks/"))

    def place(tensor: Tensor) -> tuple[int, ...]:
        module, _, last = tensor.path.rpartition("/")
        number, layered = modules.index(module), tensor.layer is not None
        return (first if layered else number, tensor.layer or 0, number, leaves.index(last))

    return sorted(_tensors(scheme, abstract, rows), key=place)


def _tensors(scheme: Scheme, abstract: Params, rows: int) -> Iterator[Tensor]:
    for path, leaf in flat(abstract).items():
        if path in scheme.absent:
            continue
        module, _, last = path.rpartition("/")
        if module not in scheme.modules:
            raise UserError(
                f"The network has the parameter {path}, which the published layout has not: choose "
                "another --to, or a config.model like the release's."
            )
        layered = path.startswith("blocks/")
        ours = _published_rows(path, leaf.shape[1:] if layered else leaf.shape, rows)
        shape, swapped = ours, False
        if last == "kernel":
            inputs = 2 if path == "blocks/out/kernel" else 1  # the heads have axes of their own
            shape, swapped = (math.prod(ours[:inputs]), math.prod(ours[inputs:])), scheme.swapped
            shape = shape[::-1] if swapped else shape
        elif last == "bias":
            shape = (math.prod(ours),)
        name = f"{scheme.modules[module]}.{scheme.leaves[last]}"
        for layer in range(leaf.shape[0]) if layered else (None,):
            at = "" if layer is None else scheme.block.format(layer)
            yield Tensor(at + name, path, layer, ours, shape, swapped)


def params_from(
    scheme: Scheme, given: Mapping[str, np.ndarray], abstract: Params, rows: int
) -> Params:
    """Our nested dict, float32, of published tensors; what pads the vocabulary is 0.

    given: name -> array, read one at a time. abstract: our parameters' shapes. rows: of the
    published vocabulary, a mask included.

    Raises:
      UserError: a tensor is missing, is of another shape, or is none of the network's.
    """
    wanted = tensors(scheme, abstract, rows)
    names = {t.name for t in wanted}
    for name in given:
        if name not in names and not re.fullmatch(scheme.derived, name):
            raise UserError(
                f"The checkpoint has the tensor {name} of shape {given[name].shape}, which the "
                f"network has not: look at {_why(name, abstract)}."
            )
    params = {path: np.zeros(leaf.shape, leaf.dtype) for path, leaf in flat(abstract).items()}
    for tensor in wanted:
        fields = FIELDS.get(tensor.path, "config.model.width")
        if tensor.name not in given:
            raise UserError(
                f"The checkpoint has no tensor {tensor.name} of shape {tensor.shape}: look at "
                f"{_why(tensor.name, abstract)}."
            )
        array = given[tensor.name]
        if array.shape != tensor.shape:
            raise UserError(
                f"The checkpoint's tensor {tensor.name} has shape {array.shape}, the network's "
                f"{tensor.shape}: look at {fields}."
            )
        tensor.part(params[tensor.path])[...] = tensor.to_ours(array)
    return nested(params)


def tensors_from(scheme: Scheme, params: Params, rows: int) -> dict[str, np.ndarray]:
    """The way back: published name -> array; arguments as in `params_from`.

    Raises:
      UserError: a parameter has no counterpart, and is not 0.
    """
    arrays = flat(params)
    for path in scheme.absent:
        if path in arrays and np.any(arrays[path]):
            raise UserError(
                f"The parameter {path} is not 0, and the published layout has none: it cannot be "
                "written so."
            )
    return {
        t.name: np.ascontiguousarray(t.to_theirs(t.part(np.asarray(arrays[t.path]))))
        for t in tensors(scheme, params, rows)
    }


def flat(tree: Params) -> dict[str, Any]:
    """{"blocks": {"norm1": ...}} -> {"blocks/norm1/scale": ...}."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(str(key.key) for key in path): leaf for path, leaf in leaves}


def nested(arrays: Mapping[str, Any]) -> Params:
    """The way back."""
    tree: Params = {}
    for path, array in arrays.items():
        *above, last = path.split("/")
        at = tree
        for name in above:
            at = at.setdefault(name, {})
        at[last] = array
    return tree


def _published_rows(path: str, shape: tuple[int, ...], rows: int) -> tuple[int, ...]:
    if path == "embed/embedding":
        return (rows, *shape[1:])
    return (*shape[:-1], rows) if path in BOTH else shape


def _why(name: str, abstract: Params) -> str:
    """The field that decides whether a network has this tensor."""
    depth = jax.tree.leaves(abstract["blocks"])[0].shape[0]
    if (layer := re.match(r"(?:blocks|h)\.(\d+)\.", name)) and int(layer[1]) >= depth:
        return f"config.model.depth={depth}"
    if "adaLN" in name or name.startswith("sigma_map"):
        return "config.model.time"
    if re.search(r"norm\w*\.bias", name):
        return "config.model.norm_bias"
    if re.search(r"(attn_\w+|c_attn|attn\.c_proj)\.bias", name):
        return "config.model.attention_bias"
    if name.startswith("output_layer.linear"):
        return "config.model.tied_head"
    if name.startswith("wpe"):
        return "config.model.positions"
    return "config.model.depth and --from"


WANTED = {
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "layer_norm_epsilon": 1e-5,
}
