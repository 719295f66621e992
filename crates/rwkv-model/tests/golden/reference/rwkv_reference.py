#!/usr/bin/env python3
"""RWKV v4, v5.0, v5.1, v5.2, v6, v7 and v7a forward pass in float64 numpy: the oracle for every kernel and graph.

It is written for clarity, one token at a time, from the published equations; nothing here is fast.
Weights use the names and shapes of the original checkpoints (`blocks.N.att.key.weight`, ...), read from a
.safetensors file. Needs numpy. On the command line, text becomes one token a byte: for models with 256 tokens.

    python3 rwkv_reference.py MODEL.safetensors --tokens 34,105,110            # last-token logits, one a line
    python3 rwkv_reference.py MODEL.safetensors --text '"in' --generate 60     # greedy continuation of bytes
    python3 rwkv_reference.py MODEL.safetensors --text-file t.txt --nll        # nats per token
"""
import argparse
import json
import struct

import numpy as np

DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16}


def load_safetensors(path):
    """Returns ({name: float64 array}, metadata)."""
    with open(path, "rb") as f:
        raw = f.read()
    (n,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8:8 + n])
    meta = header.pop("__metadata__", {})
    out = {}
    for name, info in header.items():
        a, b = info["data_offsets"]
        if info["dtype"] == "BF16":
            x = (np.frombuffer(raw[8 + n + a:8 + n + b], np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            x = np.frombuffer(raw[8 + n + a:8 + n + b], DTYPES[info["dtype"]])
        out[name] = x.reshape(info["shape"]).astype(np.float64)
    return out, meta


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def layer_norm(x, weight, bias, eps=1e-5):
    return (x - x.mean()) / np.sqrt(x.var() + eps) * weight + bias


def group_norm(y, weight, bias, eps):
    """y: [H, N], normalised per head; returns [H*N]."""
    y = (y - y.mean(1, keepdims=True)) / np.sqrt(y.var(1, keepdims=True) + eps)
    return y.reshape(-1) * weight + bias


class Rwkv:
    """A model of any version from 4 to 7; the names of its weights tell which."""

    def __init__(self, weights, meta=None, group_norm_eps=None):
        self.w = weights
        meta = meta or {}
        w = weights
        self.vocab, self.dim = w["emb.weight"].shape
        self.layers = 1 + max(int(k.split(".")[1]) for k in w if k.startswith("blocks."))
        p = "blocks.0.att."
        if p + "r_k" in w:
            self.version = "7a" if "blocks.0.ffn.s_emb.weight" in w else "7"
            self.heads = w[p + "r_k"].shape[0]
        elif p + "time_maa_x" in w:
            self.version = "6"
            self.heads = w[p + "time_faaaa"].shape[0]
        elif p + "ln_x.weight" in w:
            self.heads = w[p + "time_decay"].shape[0]
            per_channel = w[p + "time_decay"].size > self.heads
            self.version = "5.0" if p + "gate.weight" not in w else "5.2" if per_channel else "5.1"
        else:
            self.version = "4"
            self.heads = 1
        self.head_size = self.dim // self.heads
        self.eps = group_norm_eps or float(meta.get("group_norm_eps", 64e-5))

    def vec(self, name):
        """A weight as a vector, whatever its shape in the file."""
        return self.w[name].reshape(-1)

    def new_state(self):
        att = np.zeros((self.layers, self.heads, self.head_size, self.head_size))
        if self.version == "4":
            att = np.zeros((self.layers, 3, self.dim))
            att[:, 2] = -1e30
        return {"shift_att": np.zeros((self.layers, self.dim)), "shift_ffn": np.zeros((self.layers, self.dim)), "att": att}

    def ln(self, x, name):
        return layer_norm(x, self.vec(name + ".weight"), self.vec(name + ".bias"))

    def forward(self, token, state):
        """Advances `state` by one token and returns the logits [vocab]."""
        x = self.ln(self.w["emb.weight"][token], "blocks.0.ln0")
        self.token, self.embedding = token, x
        self.v_first = None
        for i in range(self.layers):
            time_mix = getattr(self, "time_mix_v" + self.version[0])
            x = x + time_mix(i, self.ln(x, f"blocks.{i}.ln1"), state)
            x = x + self.channel_mix(i, self.ln(x, f"blocks.{i}.ln2"), state)
        return self.w["head.weight"] @ self.ln(x, "ln_out")

    def run(self, tokens, state=None):
        """Advances `state` (by default a new one) by all tokens; returns the last logits and the state."""
        state = state or self.new_state()
        for t in tokens:
            logits = self.forward(t, state)
        return logits, state

    # -- channel mix ----------------------------------------------------------------------------------------------
    def channel_mix(self, i, x, state):
        p, w, last = f"blocks.{i}.ffn.", self.w, state["shift_ffn"][i].copy()
        state["shift_ffn"][i] = x
        if self.version[0] == "7":
            k = w[p + "key.weight"] @ (x + (last - x) * self.vec(p + "x_k"))
            k = np.maximum(k, 0) ** 2
            if self.version == "7a":
                k = k * self.deep_embed(i, x)
            return w[p + "value.weight"] @ k
        if self.version == "6":
            xk = x + (last - x) * self.vec(p + "time_maa_k")
            xr = x + (last - x) * self.vec(p + "time_maa_r")
        else:
            mk, mr = self.vec(p + "time_mix_k"), self.vec(p + "time_mix_r")
            xk, xr = x * mk + last * (1 - mk), x * mr + last * (1 - mr)
        k = np.maximum(w[p + "key.weight"] @ xk, 0) ** 2
        return sigmoid(w[p + "receptance.weight"] @ xr) * (w[p + "value.weight"] @ k)

    def deep_embed(self, i, x):
        """v7a: what the token's own matrix makes of the layer's input, one weight a channel of the FFN."""
        p, w = f"blocks.{i}.ffn.", self.w
        rank = w[p + "s1"].shape[1]
        matrix = w[p + "s_emb.weight"][self.token] + w[p + "s_emb_x.weight"] @ self.embedding
        return (x @ w[p + "s1"]) @ matrix.reshape(rank, rank) @ w[p + "s2"] + self.vec(p + "s0")

    # -- time mix -------------------------------------------------------------------------------------------------
    def shift(self, i, x, state):
        """The time mix's input one token ago; keeps `x` for the next token."""
        last = state["shift_att"][i].copy()
        state["shift_att"][i] = x
        return last

    def time_mix_v4(self, i, x, state):
        p, w = f"blocks.{i}.att.", self.w
        last = self.shift(i, x, state)

        def mix(c):
            m = self.vec(p + "time_mix_" + c)
            return x * m + last * (1 - m)

        r = sigmoid(w[p + "receptance.weight"] @ mix("r"))
        k, v = w[p + "key.weight"] @ mix("k"), w[p + "value.weight"] @ mix("v")
        first, decay = self.vec(p + "time_first"), -np.exp(self.vec(p + "time_decay"))
        aa, bb, pp = state["att"][i]
        q = np.maximum(pp, first + k)
        e1, e2 = np.exp(pp - q), np.exp(first + k - q)
        wkv = (e1 * aa + e2 * v) / (e1 * bb + e2)
        q = np.maximum(pp + decay, k)
        e1, e2 = np.exp(pp + decay - q), np.exp(k - q)
        state["att"][i] = np.stack([e1 * aa + e2 * v, e1 * bb + e2, q])
        return w[p + "output.weight"] @ (r * wkv)

    def wkv_linear(self, i, r, k, v, u, decay, state):
        """v5 and v6: y = r (u k v^T + S), S = decay S + k v^T; all [H, N]."""
        kv = k[:, :, None] * v[:, None, :]
        y = np.einsum("hk,hkv->hv", r, u[:, :, None] * kv + state["att"][i])
        state["att"][i] = kv + decay[:, :, None] * state["att"][i]
        return y

    def time_mix_v5(self, i, x, state):
        p, w, hn = f"blocks.{i}.att.", self.w, (self.heads, self.head_size)
        last = self.shift(i, x, state)

        def mix(c):
            m = self.vec(p + "time_mix_" + c)
            return x * m + last * (1 - m)

        r, k, v = (w[p + n + ".weight"] @ mix(n[0]) for n in ("receptance", "key", "value"))
        bonus = np.exp(w[p + "time_first"]) if p + "time_first" in w else w[p + "time_faaaa"]
        u = np.broadcast_to(bonus.reshape(hn[0], -1), hn)  # one value a head or one a channel
        decay = np.broadcast_to(np.exp(-np.exp(w[p + "time_decay"].reshape(hn[0], -1))), hn)
        y = self.wkv_linear(i, r.reshape(hn), k.reshape(hn), v.reshape(hn), u, decay, state)
        y = group_norm(y, self.vec(p + "ln_x.weight"), self.vec(p + "ln_x.bias"), self.eps)
        if p + "gate.weight" in w:
            y = y * silu(w[p + "gate.weight"] @ mix("g"))
        return w[p + "output.weight"] @ y

    def time_mix_v6(self, i, x, state):
        p, w, hn = f"blocks.{i}.att.", self.w, (self.heads, self.head_size)
        sx = self.shift(i, x, state) - x
        m = np.tanh((x + sx * self.vec(p + "time_maa_x")) @ w[p + "time_maa_w1"]).reshape(5, 1, -1)
        m = (m @ w[p + "time_maa_w2"])[:, 0]
        xw, xk, xv, xr, xg = (x + sx * (self.vec(p + "time_maa_" + c) + m[j]) for j, c in enumerate("wkvrg"))
        decay = self.vec(p + "time_decay") + np.tanh(xw @ w[p + "time_decay_w1"]) @ w[p + "time_decay_w2"]
        decay = np.exp(-np.exp(decay)).reshape(hn)
        r, k, v = w[p + "receptance.weight"] @ xr, w[p + "key.weight"] @ xk, w[p + "value.weight"] @ xv
        y = self.wkv_linear(i, r.reshape(hn), k.reshape(hn), v.reshape(hn), w[p + "time_faaaa"].reshape(hn), decay, state)
        y = group_norm(y, self.vec(p + "ln_x.weight"), self.vec(p + "ln_x.bias"), self.eps)
        return w[p + "output.weight"] @ (y * silu(w[p + "gate.weight"] @ xg))

    def time_mix_v7(self, i, x, state):
        p, w, hn = f"blocks.{i}.att.", self.w, (self.heads, self.head_size)
        sx = self.shift(i, x, state) - x
        xr, xw, xk, xv, xa, xg = (x + sx * self.vec(p + "x_" + c) for c in "rwkvag")
        r, k, v = w[p + "receptance.weight"] @ xr, w[p + "key.weight"] @ xk, w[p + "value.weight"] @ xv
        decay = np.exp(-np.exp(-0.5) * sigmoid(self.vec(p + "w0") + np.tanh(xw @ w[p + "w1"]) @ w[p + "w2"]))
        if self.v_first is None:
            self.v_first = v
        else:
            v = v + (self.v_first - v) * sigmoid(self.vec(p + "v0") + xv @ w[p + "v1"] @ w[p + "v2"])
        a = sigmoid(self.vec(p + "a0") + xa @ w[p + "a1"] @ w[p + "a2"])
        g = sigmoid(xg @ w[p + "g1"]) @ w[p + "g2"]
        kk = (k * self.vec(p + "k_k")).reshape(hn)
        kk = kk / np.maximum(np.linalg.norm(kk, axis=1, keepdims=True), 1e-12)
        k = k * (1 + (a - 1) * self.vec(p + "k_a"))
        rh, dh, kh, vh, ah = (t.reshape(hn) for t in (r, decay, k, v, a))
        s = state["att"][i]  # [H, value, key]
        sa = np.einsum("hvk,hk->hv", s, -kk)
        s = s * dh[:, None, :] + sa[:, :, None] * (kk * ah)[:, None, :] + vh[:, :, None] * kh[:, None, :]
        state["att"][i] = s
        y = np.einsum("hvk,hk->hv", s, rh)
        y = group_norm(y, self.vec(p + "ln_x.weight"), self.vec(p + "ln_x.bias"), self.eps)
        bonus = (rh * kh * w[p + "r_k"]).sum(1, keepdims=True) * vh
        return w[p + "output.weight"] @ ((y + bonus.reshape(-1)) * g)


def nll(model, tokens):
    """Mean negative log likelihood in nats of tokens[1:] given what stands before each."""
    state, total = model.new_state(), 0.0
    logits = model.forward(tokens[0], state)
    for t in tokens[1:]:
        z = logits - logits.max()
        total += np.log(np.exp(z).sum()) - z[t]
        logits = model.forward(t, state)
    return total / (len(tokens) - 1)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model")
    ap.add_argument("--tokens")
    ap.add_argument("--text", help="UTF-8 text taken as byte tokens")
    ap.add_argument("--text-file")
    ap.add_argument("--generate", type=int, default=0)
    ap.add_argument("--nll", action="store_true")
    ap.add_argument("--group-norm-eps", type=float)
    args = ap.parse_args()
    weights, meta = load_safetensors(args.model)
    model = Rwkv(weights, meta, args.group_norm_eps)
    if args.text_file:
        with open(args.text_file, "rb") as f:
            tokens = list(f.read())
    elif args.text is not None:
        tokens = list(args.text.encode())
    else:
        tokens = [int(t) for t in args.tokens.split(",")]
    if args.nll:
        print(nll(model, tokens))
        return
    logits, state = model.run(tokens)
    if not args.generate:
        print("\n".join(repr(float(v)) for v in logits))
        return
    for _ in range(args.generate):
        tokens.append(int(logits.argmax()))
        logits = model.forward(tokens[-1], state)
    print(tokens)
    if model.vocab <= 256:
        print(bytes(tokens))


if __name__ == "__main__":
    main()
