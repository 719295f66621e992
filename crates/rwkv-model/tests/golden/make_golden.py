#!/usr/bin/env python3
"""Writes demo.json: what the float64 reference computes for the demo model, as the engine's tests expect it.

    python3 make_golden.py ../../assets/demo/demo.gguf demo.json

Reads the weights as they are in the GGUF file, dequantized, so that the engine is compared on the same numbers.
Needs the packages gguf and numpy.
"""

import argparse
import json
import os

import gguf
import numpy as np

from reference.rwkv_reference import Rwkv

GROUP_NORM_EPS = 64e-5
GREEDY_TOKENS = 40
DECIMALS = 6

# name, text, how many of its tokens to take (None: all), after which of them to keep logits besides the last
CASES = (
    ("short", "There was a", None, ()),
    ("story", "It was a dark and stormy", None, ()),
    ("paragraph", "The old man sat by the fire, and the children gathered round him to hear of the sea.", 20, ()),
    (
        "passage",
        '"What a strange history is mine!" said Thames. "Kidnapped, and sent to France by one uncle, it was my lot to '
        "fall into the hands of another, -- my father's own brother, the Marshal Gaucher de Chatillon; to whom, and "
        'to the Cardinal Dubois, I owed all my good fortune."\n"The ways of Providence are inscrutable," observed '
        'Wood.\n"When in France, I heard from the Marshal that his brother had perished in London on the night of the '
        "Great Storm. It was supposed he was drowned in crossing the river, as his body had never been found. Little "
        'did I imagine at the time that it was my own father to whom he referred."\n"I think I remember reading '
        'something about your father in the papers," observed Wood.',
        150,
        (7, 32, 100),
    ),
)

# Tensors of a layer by their GGUF names, the `.weight` of both sides left out.
LAYER_MATRICES = {
    "time_mix_receptance": "att.receptance",
    "time_mix_key": "att.key",
    "time_mix_value": "att.value",
    "time_mix_output": "att.output",
    "channel_mix_key": "ffn.key",
    "channel_mix_value": "ffn.value",
}
LAYER_NORMS = {"attn_norm": "ln1", "attn_norm_2": "ln2", "time_mix_ln": "att.ln_x"}
LAYER_VECTORS = {f"time_mix_{name}": f"att.{name}" for name in ("w0", "a0", "v0", "k_k", "k_a")}
LAYER_VECTORS["channel_mix_lerp_k"] = "ffn.x_k"
LAYER_LORA = {f"time_mix_{name}{half}": f"att.{name}{half}" for name in "wavg" for half in "12"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="demo.gguf")
    parser.add_argument("out", help="JSON file to write")
    args = parser.parse_args()

    reader = gguf.GGUFReader(args.model)
    model = Rwkv(checkpoint_weights(reader), group_norm_eps=GROUP_NORM_EPS)
    pieces = token_pieces(reader)
    golden = {
        "model": os.path.basename(args.model),
        "version": model.version,
        "group_norm_eps": GROUP_NORM_EPS,
        "cases": [run_case(model, pieces, *case) for case in CASES],
    }
    with open(args.out, "w", encoding="utf-8", newline="\n") as file:
        json.dump(golden, file)


def checkpoint_weights(reader):
    """Returns {name: float64 array} under the names and orientations of the original checkpoints. Layer 0's `v0`,
    `v1` and `v2` are the file's stand-ins; nothing reads them."""
    weights = {}
    head_size = reader.fields["rwkv7.wkv.head_size"].contents()
    tensors = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}

    def take(name):
        return tensors.pop(name).astype(np.float64)

    def take_with_bias(name, original):
        weights[f"{original}.weight"] = take(f"{name}.weight")
        weights[f"{original}.bias"] = take(f"{name}.bias")

    weights["emb.weight"] = take("token_embd.weight")
    weights["head.weight"] = take("output.weight")
    take_with_bias("token_embd_norm", "blocks.0.ln0")
    take_with_bias("output_norm", "ln_out")
    for layer in range(reader.fields["rwkv7.block_count"].contents()):
        block, original = f"blk.{layer}.", f"blocks.{layer}."
        for name, source in LAYER_NORMS.items():
            take_with_bias(block + name, original + source)
        for name, source in LAYER_MATRICES.items():
            weights[f"{original}{source}.weight"] = take(f"{block}{name}.weight")
        for name, source in LAYER_VECTORS.items():
            weights[original + source] = take(f"{block}{name}.weight")
        for name, source in LAYER_LORA.items():
            # The file has [out, in]; checkpoints multiply from the left: [in, out].
            weights[original + source] = take(f"{block}{name}.weight").T
        weights[f"{original}att.r_k"] = take(f"{block}time_mix_r_k.weight").reshape(-1, head_size)
        for name, interpolation in zip("rwkvag", take(f"{block}time_mix_lerp_fused.weight")):
            weights[f"{original}att.x_{name}"] = interpolation
    if tensors:
        raise SystemExit(f"tensors that this script does not know: {', '.join(tensors)}")
    return weights


def token_pieces(reader):
    """Returns {token bytes: id} of the normal tokens; the file has them escaped as Python writes bytes."""
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    types = reader.fields["tokenizer.ggml.token_type"].contents()
    return {
        token.encode().decode("unicode_escape").encode("latin-1"): i
        for i, (token, kind) in enumerate(zip(tokens, types))
        if kind == gguf.TokenType.NORMAL
    }


def encode(pieces, text):
    """Greedy longest match over the UTF-8 bytes."""
    data, tokens, at = text.encode(), [], 0
    longest = max(map(len, pieces))
    while at < len(data):
        piece = data[at : at + longest]
        while piece not in pieces:  # ends at the latest with one byte: all of them are tokens
            piece = piece[:-1]
        tokens.append(pieces[piece])
        at += len(piece)
    return tokens


def run_case(model, pieces, name, text, limit, checkpoints):
    """One case: logits after the last token and after each count of `checkpoints`, and the greedy continuation."""
    tokens = encode(pieces, text)[:limit]
    bytes_of = {token: piece for piece, token in pieces.items()}
    state, earlier = model.new_state(), []
    for count, token in enumerate(tokens, 1):
        logits = model.forward(token, state)
        if count in checkpoints:
            earlier.append({"after": count, "logits": rounded(logits)})
    greedy, smallest_margin = continue_greedily(model, logits, state)
    return {
        "name": name,
        "text": b"".join(bytes_of[token] for token in tokens).decode(),
        "tokens": tokens,
        "logits": rounded(logits),
        "earlier": earlier,
        "greedy": greedy,
        "smallest_margin": round(smallest_margin, DECIMALS),
    }


def continue_greedily(model, logits, state):
    """Returns the most likely tokens, one after the other, and the smallest lead that any had over the second best."""
    greedy, margins = [], []
    for _ in range(GREEDY_TOKENS):
        second, best = np.sort(logits)[-2:]
        margins.append(best - second)
        greedy.append(int(logits.argmax()))
        logits = model.forward(greedy[-1], state)
    return greedy, float(min(margins))


def rounded(logits):
    return [round(float(logit), DECIMALS) for logit in logits]


if __name__ == "__main__":
    main()
