#!/usr/bin/env python3
"""Writes versions/NAME.safetensors and versions/NAME.json: a small random model of each version of RWKV, and the logits
that the float64 reference computes for it.

    python3 make_versions.py versions
    python3 make_versions.py FOLDER --random-shapes SEED

Needs numpy. The models have the names of the original checkpoints, matrices in f16, and shapes that are multiples of
nothing: what an engine gets wrong at an edge shows here.
"""

import argparse
import json
import os
import struct

import numpy as np

from reference.rwkv_reference import Rwkv

TOKENS = 37
DECIMALS = 7

# name, layers, heads, head size, FFN width, vocabulary, ranks of the low-rank pairs
MODELS = (
    ("v4", 3, 1, 44, 92, 61, {}),
    ("v5.0", 2, 3, 16, 100, 53, {}),
    ("v5.1", 2, 5, 8, 72, 47, {}),
    ("v5.2", 3, 3, 24, 132, 59, {}),
    ("v6", 3, 2, 40, 140, 67, {"mix": 7, "decay": 5}),
    ("v7", 3, 3, 24, 148, 71, {"w": 6, "a": 5, "v": 3, "g": 9}),
    ("v7a", 2, 2, 24, 116, 43, {"w": 4, "a": 3, "v": 5, "g": 7, "s": 6}),
)


class Maker:
    """Random tensors, scaled so that activations stay near 1."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)
        self.tensors = {}

    def uniform(self, name, low, high, *shape):
        self.tensors[name] = self.random.uniform(low, high, shape).astype(np.float32)

    def matrix(self, name, gain, inputs, *shape):
        """Outputs have `gain` times the size of the inputs, of which each output sums so many."""
        bound = gain * np.sqrt(3 / inputs)
        self.tensors[name] = self.random.uniform(-bound, bound, shape).astype(np.float16)

    def norm(self, name, width):
        self.uniform(name + ".weight", 0.7, 1.3, width)
        self.uniform(name + ".bias", -0.1, 0.1, width)


def make(name, layers, heads, head_size, ffn, vocab, ranks, seed):
    maker, width = Maker(seed), heads * head_size
    maker.uniform("emb.weight", -1, 1, vocab, width)
    maker.norm("blocks.0.ln0", width)
    maker.norm("ln_out", width)
    maker.matrix("head.weight", 1, width, vocab, width)
    for layer in range(layers):
        block = f"blocks.{layer}."
        maker.norm(block + "ln1", width)
        maker.norm(block + "ln2", width)
        for matrix, gain in (("receptance", 0.5), ("key", 0.3), ("value", 0.5), ("output", 1)):
            maker.matrix(f"{block}att.{matrix}.weight", gain, width, width, width)
        maker.matrix(block + "ffn.key.weight", 1, width, ffn, width)
        maker.matrix(block + "ffn.value.weight", 1, ffn, width, ffn)
        if name[1] == "7":
            seven(maker, block, layer, heads, head_size, ffn, vocab, ranks)
        else:
            four_to_six(maker, name, block, heads, head_size, ranks)
    return maker.tensors


def four_to_six(maker, name, block, heads, head_size, ranks):
    width = heads * head_size
    att, ffn = block + "att.", block + "ffn."
    maker.matrix(ffn + "receptance.weight", 1, width, width, width)
    mix = "time_maa_" if name == "v6" else "time_mix_"
    for channel in "kr":
        maker.uniform(ffn + mix + channel, 0, 1, 1, 1, width)
    gated = name in ("v5.1", "v5.2", "v6")
    for channel in "rkv" + "g" * gated + "wx" * (name == "v6"):
        maker.uniform(att + mix + channel, 0, 1, 1, 1, width)
    if gated:
        maker.matrix(att + "gate.weight", 1, width, width, width)
    if name != "v4":
        maker.norm(att + "ln_x", width)
    if name == "v4":
        maker.uniform(att + "time_decay", -6, 2, width)
        maker.uniform(att + "time_first", -2, 2, width)
    elif name == "v5.0":
        maker.uniform(att + "time_decay", -6, 1, heads)
        maker.uniform(att + "time_first", -2, 1, heads)
    elif name == "v5.1":
        maker.uniform(att + "time_decay", -6, 1, heads, 1)
        maker.uniform(att + "time_faaaa", -1, 1, heads, 1)
    elif name == "v5.2":
        maker.uniform(att + "time_decay", -6, 1, heads, head_size)
        maker.uniform(att + "time_faaaa", -1, 1, heads, head_size)
    else:
        maker.uniform(att + "time_decay", -6, 1, 1, 1, width)
        maker.uniform(att + "time_faaaa", -1, 1, heads, head_size)
        maker.matrix(att + "time_maa_w1", 1, width, width, 5 * ranks["mix"])
        maker.matrix(att + "time_maa_w2", 0.3, ranks["mix"], 5, ranks["mix"], width)
        maker.matrix(att + "time_decay_w1", 1, width, width, ranks["decay"])
        maker.matrix(att + "time_decay_w2", 0.5, ranks["decay"], ranks["decay"], width)


def seven(maker, block, layer, heads, head_size, ffn_width, vocab, ranks):
    width = heads * head_size
    att, ffn = block + "att.", block + "ffn."
    for channel in "rwkvag":
        maker.uniform(f"{att}x_{channel}", 0, 1, 1, 1, width)
    maker.uniform(ffn + "x_k", 0, 1, 1, 1, width)
    for pair, low, high, gain in (("w", -6.4, 4, 0.3), ("a", -1, 1, 0.3), ("v", -1, 1, 0.3), ("g", None, None, 2)):
        if pair == "v" and layer == 0:
            continue
        if low is not None:
            maker.uniform(f"{att}{pair}0", low, high, 1, 1, width)
        maker.matrix(f"{att}{pair}1", 1, width, width, ranks[pair])
        maker.matrix(f"{att}{pair}2", gain, ranks[pair], ranks[pair], width)
    maker.uniform(att + "k_k", 0.6, 1, 1, 1, width)
    maker.uniform(att + "k_a", 0.8, 1.2, 1, 1, width)
    maker.uniform(att + "r_k", -0.3, 0.3, heads, head_size)
    maker.norm(att + "ln_x", width)
    if "s" in ranks:
        rank = ranks["s"]
        maker.uniform(ffn + "s_emb.weight", -1, 1, vocab, rank * rank)
        maker.matrix(ffn + "s_emb_x.weight", 1, width, rank * rank, width)
        maker.uniform(ffn + "s0", 0.5, 1.5, 1, 1, ffn_width)
        maker.matrix(ffn + "s1", 1, width, width, rank)
        maker.matrix(ffn + "s2", 0.3, rank, rank, ffn_width)


def save(path, tensors):
    names = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16"}
    header, blobs, at = {}, [], 0
    for name, tensor in tensors.items():
        blob = np.ascontiguousarray(tensor).tobytes()
        header[name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + len(blob)],
        }
        blobs.append(blob)
        at += len(blob)
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(head)) + head + b"".join(blobs))


def random_shapes(models, seed):
    """The same versions in other shapes."""
    random = np.random.default_rng(seed)
    for name, *_, ranks in models:
        head_size = 4 * int(random.integers(2, 17))
        heads = int(random.integers(1, 5))
        if name == "v4":
            heads, head_size = 1, heads * head_size
        ffn, vocab = 4 * int(random.integers(5, 60)), int(random.integers(20, 90))
        ranks = {pair: int(random.integers(1, 12)) for pair in ranks}
        yield name, int(random.integers(1, 5)), heads, head_size, ffn, vocab, ranks


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="folder to write to")
    parser.add_argument("--random-shapes", type=int, metavar="SEED", help="models of other shapes and values")
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)
    models, first = MODELS, 0
    if args.random_shapes is not None:
        models, first = random_shapes(MODELS, args.random_shapes), 1000 * args.random_shapes
    for seed, (name, layers, heads, head_size, ffn, vocab, ranks) in enumerate(models, first):
        tensors = make(name, layers, heads, head_size, ffn, vocab, ranks, seed)
        save(os.path.join(args.out, name + ".safetensors"), tensors)
        model = Rwkv({key: value.astype(np.float64) for key, value in tensors.items()})
        assert model.version == name[1:], model.version
        tokens = np.random.default_rng(100 + seed).integers(0, vocab, TOKENS).tolist()
        state, rows = model.new_state(), []
        for token in tokens:
            rows.append([round(float(x), DECIMALS) for x in model.forward(token, state)])
        golden = {"version": name, "tokens": tokens, "logits": rows}
        with open(os.path.join(args.out, name + ".json"), "w", encoding="utf-8", newline="\n") as file:
            json.dump(golden, file)
        size = np.abs(np.array(rows)).max()
        print(f"{name}: {len(tensors)} tensors, largest logit {size:.2f}")


if __name__ == "__main__":
    main()
