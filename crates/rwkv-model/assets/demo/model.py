"""RWKV-7 in PyTorch, for training: parameter names, shapes and initial values are those of the original checkpoints."""

import math

import torch
from fla.ops.rwkv7 import chunk_rwkv7
from torch import nn
from torch.nn import functional as F

HEAD_SIZE = 64
FFN_FACTOR = 4
LORA_RANKS = {"w": 32, "a": 32, "v": 32, "g": 64}
LOG_DECAY_SCALE = -math.exp(-0.5)
GROUP_NORM_EPS = 64e-5


class Rwkv7(nn.Module):
    """Token ids [batch, time] to logits [batch, time, vocab]."""

    def __init__(self, vocab, dim, layers, dropout):
        super().__init__()
        self.emb = Matrix(dim, vocab, lambda weight: nn.init.uniform_(weight, -1e-4, 1e-4))
        self.blocks = nn.ModuleList(Block(dim, layer, layers, dropout) for layer in range(layers))
        self.ln_out = nn.LayerNorm(dim)
        self.head = Matrix(dim, vocab, lambda weight: nn.init.orthogonal_(weight, 0.5 * math.sqrt(vocab / dim)))

    def forward(self, tokens):
        x = self.blocks[0].ln0(self.emb.weight[tokens])
        first_value = None
        for block in self.blocks:
            x, first_value = block(x, first_value)
        return self.head(self.ln_out(x))


class Block(nn.Module):
    """One layer: time mix, then channel mix, each added to the residual stream [batch, time, dim]."""

    def __init__(self, dim, layer, layers, dropout):
        super().__init__()
        if layer == 0:
            self.ln0 = nn.LayerNorm(dim)
        self.ln1 = nn.LayerNorm(dim)
        self.ln2 = nn.LayerNorm(dim)
        self.att = TimeMix(dim, layer, layers)
        self.ffn = ChannelMix(dim, layer, layers)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, first_value):
        mixed, first_value = self.att(self.ln1(x), first_value)
        x = x + self.dropout(mixed)
        x = x + self.dropout(self.ffn(self.ln2(x)))
        return x, first_value


class TimeMix(nn.Module):
    """The WKV recurrence. `first_value` is layer 0's value, which later layers blend into their own."""

    def __init__(self, dim, layer, layers):
        super().__init__()
        depth, left = layer / max(layers - 1, 1), 1 - layer / layers
        ramp = torch.arange(dim) / dim
        position = torch.arange(dim) / (dim - 1)
        middle = (HEAD_SIZE - 1) / 2
        zigzag = (torch.arange(dim) % HEAD_SIZE - middle) / middle  # -1 to 1 within each head

        for name, power in zip("rwkvag", (0.2, 0.9, 0.7, 0.7, 0.9, 0.2)):
            setattr(self, f"x_{name}", channels(1 - ramp ** (power * left)))
        self.w0 = channels(-6.5 + 6 * position ** (1 + depth**0.3) + zigzag * zigzag.abs() * 2.5 + 0.5)
        self.a0 = channels(-0.19 + zigzag * 0.3 + (position - 0.5) * 0.4)
        self.v0 = channels(0.73 - (position - 0.5) * 0.4)
        for name, rank in LORA_RANKS.items():
            setattr(self, f"{name}1", nn.Parameter(torch.zeros(dim, rank)))
            setattr(self, f"{name}2", nn.Parameter(nn.init.orthogonal_(torch.empty(rank, dim), 0.1)))
        self.k_k = channels(0.71 - zigzag * 0.1)
        self.k_a = channels(torch.full((dim,), 1.02))
        self.r_k = nn.Parameter(torch.full((dim // HEAD_SIZE, HEAD_SIZE), -0.04))

        self.receptance = Matrix(dim, dim, fan_in_uniform(0.5))
        self.key = Matrix(dim, dim, fan_in_uniform(0.05))
        self.value = Matrix(dim, dim, fan_in_uniform(0.5))
        self.output = Matrix(dim, dim, nn.init.zeros_)
        self.ln_x = nn.GroupNorm(dim // HEAD_SIZE, dim, GROUP_NORM_EPS)
        nn.init.constant_(self.ln_x.weight, ((1 + layer) / layers) ** 0.7)

    def forward(self, x, first_value):
        step = previous(x) - x
        xr, xw, xk, xv, xa, xg = (x + step * getattr(self, f"x_{name}") for name in "rwkvag")
        r, k, v = self.receptance(xr), self.key(xk), self.value(xv)
        log_decay = LOG_DECAY_SCALE * torch.sigmoid((self.w0 + torch.tanh(xw @ self.w1) @ self.w2).float())
        if first_value is None:
            first_value = v
        else:
            v = v + (first_value - v) * torch.sigmoid(self.v0 + (xv @ self.v1) @ self.v2)
        rate = torch.sigmoid(self.a0 + (xa @ self.a1) @ self.a2)
        gate = torch.sigmoid(xg @ self.g1) @ self.g2
        removal = F.normalize(heads(k * self.k_k), dim=-1)
        k = k * (1 + (rate - 1) * self.k_a)

        replacement = removal.flatten(-2) * rate
        inputs = (heads(r), heads(log_decay), heads(k), heads(v), -removal, heads(replacement))
        y, _ = chunk_rwkv7(*(tensor.to(torch.bfloat16) for tensor in inputs), scale=1.0)
        y = self.ln_x(y.reshape(-1, x.shape[-1]).float()).view(x.shape)
        bonus = (heads(r * k) * self.r_k).sum(-1, keepdim=True) * heads(v)
        return self.output((y + bonus.flatten(-2)) * gate), first_value


class ChannelMix(nn.Module):
    """The feed-forward network, with squared ReLU."""

    def __init__(self, dim, layer, layers):
        super().__init__()
        ramp = torch.arange(dim) / dim
        self.x_k = channels(1 - ramp ** ((1 - layer / layers) ** 4))
        self.key = Matrix(dim, dim * FFN_FACTOR, fan_in_uniform(0.5))
        self.value = Matrix(dim * FFN_FACTOR, dim, nn.init.zeros_)

    def forward(self, x):
        x = x + (previous(x) - x) * self.x_k
        return self.value(torch.relu(self.key(x)) ** 2)


class Matrix(nn.Module):
    """A linear map without bias. nn.Linear would first draw initial values of its own from the random generator."""

    def __init__(self, inputs, outputs, initialise):
        super().__init__()
        self.weight = nn.Parameter(initialise(torch.empty(outputs, inputs)))

    def forward(self, x):
        return F.linear(x, self.weight)


def fan_in_uniform(scale):
    """An initialiser: uniform within `scale` / sqrt(inputs)."""

    def initialise(weight):
        bound = scale / math.sqrt(weight.shape[1])
        return nn.init.uniform_(weight, -bound, bound)

    return initialise


def channels(values):
    """A vector over the channels, in the checkpoints' shape [1, 1, dim]."""
    return nn.Parameter(values.view(1, 1, -1))


def heads(x):
    """[batch, time, dim] to [batch, time, head, channel]."""
    return x.unflatten(-1, (-1, HEAD_SIZE))


def previous(x):
    """The activations of the token before, zero for the first."""
    return F.pad(x, (0, 0, 1, -1))
