"""The published networks in numpy and in PyTorch, from tensors by their published names."""

import numpy as np


def dit(w, tokens, sigma, heads):
    """Logits of SEDD's, MDLM's or RADD's network: int[B, L], float[B] -> float64[B, L, rows]."""
    w = {k: np.asarray(v, np.float64) for k, v in w.items()}
    width = w["vocab_embed.embedding"].shape[1]
    depth = 1 + max(int(k.split(".")[1]) for k in w if k.startswith("blocks."))
    x = w["vocab_embed.embedding"][tokens]
    c = None
    if "sigma_map.mlp.0.weight" in w:
        angle = sigma[:, None] * np.exp(-np.log(1e4) * np.arange(128) / 128)
        waves = np.concatenate([np.cos(angle), np.sin(angle)], -1)
        c = _silu(_lin(w, "sigma_map.mlp.2", _silu(_lin(w, "sigma_map.mlp.0", waves))))
    for i in range(depth):
        at = f"blocks.{i}."
        parts = np.zeros((6, len(x), 1, width)) if c is None else _mods(w, at, c, 6)
        gates = (1, 1) if c is None else (parts[2], parts[5])
        h = _norm(w, at + "norm1", x) * (1 + parts[1]) + parts[0]
        q, k, v = np.split(h @ w[at + "attn_qkv.weight"].T, 3, -1)
        q, k, v = (_heads(y, heads) for y in (q, k, v))
        mixed = _attend(_rotate(q, w), _rotate(k, w), v, causal=False)
        x = x + gates[0] * (mixed @ w[at + "attn_out.weight"].T)
        h = _norm(w, at + "norm2", x) * (1 + parts[4]) + parts[3]
        x = x + gates[1] * _lin(w, at + "mlp.2", _gelu(_lin(w, at + "mlp.0", h)))
    x = _norm(w, "output_layer.norm_final", x)
    if c is not None:
        shift, scale = _mods(w, "output_layer.", c, 2)
        x = x * (1 + scale) + shift
    return _lin(w, "output_layer.linear", x)


def gpt2(w, tokens, heads):
    """Logits of GPT-2: int[B, L] -> float64[B, L, V]."""
    w = {k: np.asarray(v, np.float64) for k, v in w.items()}
    depth = 1 + max(int(k.split(".")[1]) for k in w if k.startswith("h."))

    def conv(name, x):
        return x @ w[name + ".weight"] + w[name + ".bias"]

    x = w["wte.weight"][tokens] + w["wpe.weight"][: tokens.shape[1]]
    for i in range(depth):
        at = f"h.{i}."
        qkv = np.split(conv(at + "attn.c_attn", _norm(w, at + "ln_1", x)), 3, -1)
        x = x + conv(at + "attn.c_proj", _attend(*(_heads(y, heads) for y in qkv), causal=True))
        x = x + conv(at + "mlp.c_proj", _gelu(conv(at + "mlp.c_fc", _norm(w, at + "ln_2", x))))
    return _norm(w, "ln_f", x) @ w["wte.weight"].T


def torch_dit(torch, rows, width, depth, heads, cond):
    """The network as a torch module whose state_dict has the published names.

    Its parameters are in the order of MDLM's (kuleshov-group/mdlm, models/dit.py).
    """
    nn = torch.nn

    class Norm(nn.LayerNorm):
        def __init__(self):
            super().__init__(width, bias=not cond)

    def mlp(*sizes, act):
        a, b, c = sizes
        return nn.Sequential(nn.Linear(a, b), act, nn.Linear(b, c))

    class Holder(nn.Module):
        def __init__(self, **parts):
            super().__init__()
            for name, part in parts.items():
                setattr(self, name, part)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1 = Norm()
            self.attn_qkv = nn.Linear(width, 3 * width, bias=False)
            self.attn_out = nn.Linear(width, width, bias=False)
            self.norm2 = Norm()
            self.mlp = mlp(width, 4 * width, width, act=nn.GELU(approximate="tanh"))
            if cond:
                self.adaLN_modulation = nn.Linear(cond, 6 * width)

        def forward(self, x, c, turn):
            ones = [0, 0, 1, 0, 0, 1]
            m = self.adaLN_modulation(c)[:, None].chunk(6, -1) if cond else ones
            h = self.norm1(x) * (1 + m[1]) + m[0]
            q, k, v = (
                y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in self.attn_qkv(h).chunk(3, -1)
            )
            h = nn.functional.scaled_dot_product_attention(turn(q), turn(k), v)
            x = x + m[2] * self.attn_out(h.transpose(1, 2).flatten(-2))
            return x + m[5] * self.mlp(self.norm2(x) * (1 + m[4]) + m[3])

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.vocab_embed = Holder(embedding=nn.Parameter(torch.zeros(rows, width)))
            if cond:
                self.sigma_map = Holder(mlp=mlp(256, cond, cond, act=nn.SiLU()))
            self.rotary_emb = nn.Module()
            each = torch.arange(0, width // heads, 2) / (width // heads)
            self.rotary_emb.register_buffer("inv_freq", 1 / 10_000**each)
            self.blocks = nn.ModuleList(Block() for _ in range(depth))
            parts = {"norm_final": Norm(), "linear": nn.Linear(width, rows)}
            if cond:
                parts["adaLN_modulation"] = nn.Linear(cond, 2 * width)
            self.output_layer = Holder(**parts)

        def forward(self, tokens, sigma):
            x, c, top = self.vocab_embed.embedding[tokens], None, self.output_layer
            if cond:
                angle = sigma[:, None] * 10_000 ** -(torch.arange(128) / 128)
                c = self.sigma_map.mlp(torch.cat([angle.cos(), angle.sin()], -1))
                c = nn.functional.silu(c)
            angle = torch.outer(torch.arange(tokens.shape[1]), self.rotary_emb.inv_freq)

            def turn(y):
                a, b = y.chunk(2, -1)
                cos, sin = angle.cos(), angle.sin()
                return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

            for block in self.blocks:
                x = block(x, c, turn)
            x = top.norm_final(x)
            if cond:
                shift, scale = top.adaLN_modulation(c)[:, None].chunk(2, -1)
                x = x * (1 + scale) + shift
            return top.linear(x)

    return Network()


def _lin(w, name, x):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def _mods(w, at, c, parts):
    return np.split(_lin(w, at + "adaLN_modulation", c)[:, None], parts, -1)


def _silu(x):
    return x / (1 + np.exp(-x))


def _gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _norm(w, name, x):
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return y * w[f"{name}.weight"] + w.get(f"{name}.bias", 0)


def _heads(x, heads):
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def _rotate(x, w):
    angle = np.arange(x.shape[2])[:, None] * w["rotary_emb.inv_freq"]
    a, b = np.split(x, 2, -1)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def _attend(q, k, v, causal):
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    if causal:
        scores = np.where(np.tri(scores.shape[-1], dtype=bool), scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = p / p.sum(-1, keepdims=True) @ v
    return mixed.transpose(0, 2, 1, 3).reshape(len(q), q.shape[2], -1)
