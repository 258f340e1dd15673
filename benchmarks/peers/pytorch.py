"""RADD's network and training step in plain PyTorch, with our weights, for comparison with ours.

What a user would write: nn.Linear, scaled_dot_product_attention, logits of all positions, cross
entropy of the masked ones, fused AdamW, clipping, and an average of the weights. Only the values of
the weights are ours, so that both give the same loss.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddm_jax.config import ModelConfig

SAMPLING_EPS, SCHEDULE_EPS = 1e-3, 1e-3  # first time; log-linear alpha = 1 - (1 - eps) t


class Block(nn.Module):
    """Attention and MLP on normalised inputs."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        width, inner = config.width, config.mlp_ratio * config.width
        self.heads = config.heads
        self.norm1 = nn.LayerNorm(width, bias=config.norm_bias)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.norm2 = nn.LayerNorm(width, bias=config.norm_bias)
        self.mlp_in = nn.Linear(width, inner)
        self.mlp_out = nn.Linear(inner, width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        b, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(b, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        h = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v)
        x = x + self.out(h.transpose(1, 2).reshape(b, length, width))
        return x + self.mlp_out(F.gelu(self.mlp_in(self.norm2(x)), approximate="tanh"))


class Network(nn.Module):
    """Tokens int64[B, L] -> logits [B, L, V]."""

    def __init__(self, config: ModelConfig, vocab_size: int, length: int):
        super().__init__()
        width = config.width
        self.embed = nn.Embedding(vocab_size + 1, width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_norm = nn.LayerNorm(width, bias=config.norm_bias)
        self.head = nn.Linear(width, vocab_size)
        each = width // config.heads
        angle = torch.arange(length)[:, None] * 10_000.0 ** (-torch.arange(0, each, 2) / each)
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of every position."""
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, self.cos.to(x.dtype), self.sin.to(x.dtype))
        return self.head(self.final_norm(x))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions of [B, H, L, D], halves paired."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def with_our_weights(
    params: dict, config: ModelConfig, vocab_size: int, length: int, device: str = "cpu"
) -> Network:
    """The network with our parameters, given as NumPy arrays (time "none", an untied head)."""
    model = Network(config, vocab_size, length)
    width = config.width

    def put(module: nn.Module, leaf: dict, shape: tuple[int, ...] | None = None) -> None:
        weight = leaf["scale"] if "scale" in leaf else leaf["kernel"].reshape(shape).T
        module.weight.data = torch.tensor(weight.copy())
        if "bias" in leaf:
            module.bias.data = torch.tensor(leaf["bias"].copy())

    model.embed.weight.data = torch.tensor(params["embed"]["embedding"][: vocab_size + 1].copy())
    for i, block in enumerate(model.blocks):
        leaf = {n: {k: x[i] for k, x in each.items()} for n, each in params["blocks"].items()}
        put(block.norm1, leaf["norm1"])
        put(block.qkv, leaf["qkv"], (width, 3 * width))
        put(block.out, leaf["out"], (width, width))
        put(block.norm2, leaf["norm2"])
        put(block.mlp_in, leaf["mlp_in"], (width, -1))
        put(block.mlp_out, leaf["mlp_out"], (-1, width))
    put(model.final_norm, params["final_norm"])
    head = {name: x[..., :vocab_size] for name, x in params["head"].items()}
    put(model.head, head, (width, vocab_size))
    return model.to(device)


def t_dce(model: nn.Module, tokens: Tensor, xt: Tensor, t: Tensor) -> Tensor:
    """RADD's t-DCE in nats per token, of tokens masked in xt at times t[B]."""
    logits = model(xt)
    masked = xt != tokens
    ce = F.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten(), reduction="none")
    weight = (1 - SCHEDULE_EPS) / ((1 - SCHEDULE_EPS) * t)
    return (weight[:, None] * torch.where(masked, ce.view_as(tokens), 0)).mean()


def corrupted(tokens: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """(xt, t): stratified times, tokens masked with probability 1 - alpha(t)."""
    size = len(tokens)
    u = (torch.rand(1, device=tokens.device) + torch.arange(size, device=tokens.device) / size) % 1
    t = (1 - SAMPLING_EPS) * u + SAMPLING_EPS
    moved = torch.rand(tokens.shape, device=tokens.device) < ((1 - SCHEDULE_EPS) * t)[:, None]
    return torch.where(moved, vocab_size, tokens), t


class Trainer:
    """step() trains on one batch; AdamW, clipping at 1, an exponential moving average."""

    def __init__(self, model: Network, vocab_size: int, compile: bool, bfloat16: bool = False):
        self.model, self.vocab_size, self.bfloat16 = model, vocab_size, bfloat16
        self.params = list(model.parameters())
        self.optimizer = torch.optim.AdamW(self.params, lr=3e-4, weight_decay=0.0, fused=True)
        self.ema = [p.detach().clone() for p in self.params]
        self.loss = torch.compile(self._loss) if compile else self._loss

    def _loss(self, tokens: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=self.bfloat16):
            return t_dce(self.model, tokens, xt, t)

    def step(self, tokens: Tensor) -> Tensor:
        """One update; the loss, before it."""
        loss = self.loss(tokens, *corrupted(tokens, self.vocab_size))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.params, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(self.ema, self.params, 1e-4)
        return loss.detach()


def loss_at(model: Network, tokens: np.ndarray, xt: np.ndarray, t: np.ndarray) -> float:
    """t-DCE of given corruptions, for comparison with ours."""
    with torch.no_grad():
        given: list[Any] = [torch.tensor(np.asarray(x)) for x in (tokens, xt, t)]
        loss = float(t_dce(model, given[0].long(), given[1].long(), given[2]))
    assert math.isfinite(loss)
    return loss
