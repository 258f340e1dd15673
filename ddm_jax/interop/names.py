"""Which of our parameters is which published tensor: two tables, and the rule that turns shapes.

Ours are a nested dict whose layers are stacked on a first axis, whose kernels are [in, out] with
axes for the heads, and whose vocabulary is padded. Published weights have one tensor per layer,
[out, in] in a PyTorch Linear and [in, out] in GPT-2's Conv1D, and no padding. The names are those
of SEDD's state_dicts (louaaron/Score-Entropy-Discrete-Diffusion, model/transformer.py), which RADD,
MDLM, BD3-LM and Duo keep, and of openai-community/gpt2.
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

_VOCABULARY = ("embed/embedding", "head/kernel", "head/bias")  # with an axis for the vocabulary
# the fields that decide the shape of a parameter; of all others it is config.model.width
_SHAPE_FIELDS = {
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
class NamingScheme:
    """How a family of releases names its tensors.

    Attributes:
      block: prefix of the modules of a block, with {} for the layer.
      modules: our name -> theirs, in the order of their network, which is that of its averages.
      leaves: our name -> theirs, in the same order.
      transposed: whether their matrices are [out, in].
      buffers: pattern of the names of tensors that are not parameters.
      absent: parameters of ours that they do not have, and which are 0.
    """

    block: str
    modules: Mapping[str, str]
    leaves: Mapping[str, str]
    transposed: bool
    buffers: str
    absent: tuple[str, ...] = ()


DIT = NamingScheme(
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
    transposed=True,
    buffers=r"rotary_emb\.inv_freq|block_diff_mask",
)
GPT2 = NamingScheme(
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
    transposed=False,
    buffers=r"h\.\d+\.attn\.(masked_)?bias|lm_head\.weight",
    absent=("head/bias",),
)


@dataclass(frozen=True)
class PublishedTensor:
    """One published tensor and the part of our parameters that it is.

    Attributes:
      name: its published name.
      path: our parameter.
      layer: the layer of the parameter; None if it is not in a block.
      our_shape: shape of the part of our parameter, without the axis of the layers.
      shape: published shape.
      transposed: whether the published matrix is [out, in].
    """

    name: str
    path: str
    layer: int | None
    our_shape: tuple[int, ...]
    shape: tuple[int, ...]
    transposed: bool

    def part(self, param: np.ndarray) -> np.ndarray:
        """Returns the view of our parameter that is this tensor, [*our_shape]."""
        inside: tuple[int | slice, ...] = tuple(slice(size) for size in self.our_shape)
        view: np.ndarray = param[inside if self.layer is None else (self.layer, *inside)]
        return view

    def to_ours(self, x: np.ndarray) -> np.ndarray:
        """Converts [*shape] -> [*our_shape]."""
        return (x.T if self.transposed else x).reshape(self.our_shape)

    def to_published(self, x: np.ndarray) -> np.ndarray:
        """Converts [*our_shape] -> [*shape]."""
        return x.reshape(self.shape[::-1]).T if self.transposed else x.reshape(self.shape)


def list_tensors(scheme: NamingScheme, abstract: Params, rows: int) -> list[PublishedTensor]:
    """Lists every published tensor of a network, in the order of their network's parameters.

    Args:
      scheme: the names.
      abstract: our parameters, or their shapes.
      rows: rows of the published vocabulary, a mask included.

    Raises:
      UserError: a parameter has no published counterpart.
    """
    modules, leaves = list(scheme.modules), list(scheme.leaves)
    first = next(i for i, module in enumerate(modules) if module.startswith("blocks/"))

    def place(tensor: PublishedTensor) -> tuple[int, ...]:
        module, _, last = tensor.path.rpartition("/")
        number, layered = modules.index(module), tensor.layer is not None
        return (first if layered else number, tensor.layer or 0, number, leaves.index(last))

    return sorted(_unordered_tensors(scheme, abstract, rows), key=place)


def params_from_published(
    scheme: NamingScheme, tensors: Mapping[str, np.ndarray], abstract: Params, rows: int
) -> Params:
    """Converts published tensors to our nested dict, float32; vocabulary padding is 0.

    Args:
      scheme: the names.
      tensors: name -> array, read one at a time.
      abstract: our parameters' shapes.
      rows: rows of the published vocabulary, a mask included.

    Raises:
      UserError: a tensor is missing, has another shape, or is not one of the network's.
    """
    wanted = list_tensors(scheme, abstract, rows)
    names = {t.name for t in wanted}
    for name in tensors:
        if name not in names and not re.fullmatch(scheme.buffers, name):
            raise UserError(
                f"The checkpoint has the tensor {name} of shape {tensors[name].shape}, which the "
                f"network does not have: look at {_field_of_tensor(name, abstract)}."
            )
    params = {path: np.zeros(leaf.shape, leaf.dtype) for path, leaf in flatten(abstract).items()}
    for tensor in wanted:
        if tensor.name not in tensors:
            raise UserError(
                f"The checkpoint has no tensor {tensor.name} of shape {tensor.shape}: look at "
                f"{_field_of_tensor(tensor.name, abstract)}."
            )
        array = tensors[tensor.name]
        if array.shape != tensor.shape:
            fields = _SHAPE_FIELDS.get(tensor.path, "config.model.width")
            raise UserError(
                f"The checkpoint's tensor {tensor.name} has shape {array.shape}, the network's "
                f"{tensor.shape}: look at {fields}."
            )
        tensor.part(params[tensor.path])[...] = tensor.to_ours(array)
    return unflatten(params)


def published_from_params(scheme: NamingScheme, params: Params, rows: int) -> dict[str, np.ndarray]:
    """Inverts `params_from_published`: our parameters -> published name -> array.

    Raises:
      UserError: a parameter has no published counterpart, and is not 0.
    """
    arrays = flatten(params)
    for path in scheme.absent:
        if path in arrays and np.any(arrays[path]):
            raise UserError(
                f"The parameter {path} is not 0, and the published layout does not have it: the "
                "run cannot be written in this layout."
            )
    return {
        t.name: np.ascontiguousarray(t.to_published(t.part(np.asarray(arrays[t.path]))))
        for t in list_tensors(scheme, params, rows)
    }


def flatten(tree: Params) -> dict[str, Any]:
    """Converts {"blocks": {"norm1": ...}} to {"blocks/norm1/scale": ...}."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(str(key.key) for key in path): leaf for path, leaf in leaves}


def unflatten(arrays: Mapping[str, Any]) -> Params:
    """Inverts `flatten`."""
    tree: Params = {}
    for path, array in arrays.items():
        *above, last = path.split("/")
        at = tree
        for name in above:
            at = at.setdefault(name, {})
        at[last] = array
    return tree


def _unordered_tensors(
    scheme: NamingScheme, abstract: Params, rows: int
) -> Iterator[PublishedTensor]:
    for path, leaf in flatten(abstract).items():
        if path in scheme.absent:
            continue
        module, _, last = path.rpartition("/")
        if module not in scheme.modules:
            raise UserError(
                f"The network has the parameter {path}, which the published layout does not have: "
                "choose another --to, or a config.model like the release's."
            )
        layered = path.startswith("blocks/")
        ours = _unpadded(path, leaf.shape[1:] if layered else leaf.shape, rows)
        shape, transposed = ours, False
        if last == "kernel":
            inputs = 2 if path == "blocks/out/kernel" else 1  # the heads have their own axes
            shape = (math.prod(ours[:inputs]), math.prod(ours[inputs:]))
            transposed = scheme.transposed
            shape = shape[::-1] if transposed else shape
        elif last == "bias":
            shape = (math.prod(ours),)
        name = f"{scheme.modules[module]}.{scheme.leaves[last]}"
        if not layered:
            yield PublishedTensor(name, path, None, ours, shape, transposed)
            continue
        for layer in range(leaf.shape[0]):
            prefix = scheme.block.format(layer)
            yield PublishedTensor(prefix + name, path, layer, ours, shape, transposed)


def _unpadded(path: str, shape: tuple[int, ...], rows: int) -> tuple[int, ...]:
    """Returns the shape of a parameter with `rows` in place of the padded vocabulary."""
    if path == "embed/embedding":
        return (rows, *shape[1:])
    return (*shape[:-1], rows) if path in _VOCABULARY else shape


def _field_of_tensor(name: str, abstract: Params) -> str:
    """Returns the field that decides whether a network has this tensor."""
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
