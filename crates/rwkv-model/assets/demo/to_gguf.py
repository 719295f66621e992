#!/usr/bin/env python3
"""Writes a RWKV-7 checkpoint and its vocabulary as GGUF, in the layout of llama.cpp's `rwkv7` architecture.

Needs the packages gguf and numpy.
"""

import argparse
import json

import gguf
import numpy as np

from corpus import read_vocabulary

NORMS = {"ln1": "attn_norm", "ln2": "attn_norm_2", "att.ln_x": "time_mix_ln"}
MATRICES = {
    "att.receptance": "time_mix_receptance",
    "att.key": "time_mix_key",
    "att.value": "time_mix_value",
    "att.output": "time_mix_output",
    "ffn.key": "channel_mix_key",
    "ffn.value": "channel_mix_value",
}
FILE_TYPES = {"f16": gguf.LlamaFileType.MOSTLY_F16, "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="demo.safetensors: f16, the original checkpoints' names")
    parser.add_argument("vocab", help="vocab.txt: World-style lines")
    parser.add_argument("out", help="GGUF file to write")
    parser.add_argument("--type", choices=FILE_TYPES, default="q8_0", help="type of the large matrices")
    args = parser.parse_args()

    weights = read_float16_safetensors(args.model)
    rows = len(weights["emb.weight"])
    out = gguf.GGUFWriter(args.out, "rwkv7")
    add_description(out, weights, FILE_TYPES[args.type])
    add_tokenizer(out, read_vocabulary(args.vocab), rows)
    Tensors(out, weights, quantized=args.type == "q8_0").add_all()
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def read_float16_safetensors(path):
    """Returns {name: float16 array}. File format: header length as a little-endian u64, JSON header, tensor bytes."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        data = file.read()
    header.pop("__metadata__", None)
    weights = {}
    for name, entry in header.items():
        if entry["dtype"] != "F16":
            raise SystemExit(f"{path}: tensor {name} is {entry['dtype']}, not F16")
        start, end = entry["data_offsets"]
        weights[name] = np.frombuffer(data[start:end], "<f2").reshape(entry["shape"])
    return weights


def count_layers(weights):
    return 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))


def add_description(out, weights, file_type):
    """General and architecture keys; sizes come from the tensors' shapes."""
    out.add_name("RWKV-7 demo 9M")
    out.add_description("A small RWKV-7 trained from scratch on public-domain books, for demonstration and tests")
    out.add_license("CC0-1.0")
    out.add_context_length(1048576)  # a recurrent model has no limit; readers want a number
    out.add_embedding_length(weights["emb.weight"].shape[1])
    out.add_block_count(count_layers(weights))
    out.add_layer_norm_eps(1e-5)
    out.add_wkv_head_size(weights["blocks.0.att.r_k"].shape[1])
    out.add_decay_lora_rank(weights["blocks.0.att.w1"].shape[1])
    out.add_iclr_lora_rank(weights["blocks.0.att.a1"].shape[1])
    out.add_value_residual_mix_lora_rank(weights["blocks.1.att.v1"].shape[1])
    out.add_gate_lora_rank(weights["blocks.0.att.g1"].shape[1])
    out.add_feed_forward_length(weights["blocks.0.ffn.key.weight"].shape[0])
    out.add_head_count(0)  # attention heads, that is
    out.add_file_type(file_type)


def add_tokenizer(out, vocabulary, rows):
    """Token 0 is the control token `<s>`; the others are escaped as Python writes bytes; rows beyond are unused."""
    missing = range(len(vocabulary), rows)
    escaped = [repr(piece)[2:-1].encode() for piece in vocabulary[1:]]
    normal = [gguf.TokenType.NORMAL] * len(escaped)
    out.add_tokenizer_model("rwkv")
    out.add_token_list([b"<s>", *escaped, *(f"[PAD{token}]".encode() for token in missing)])
    out.add_token_types([gguf.TokenType.CONTROL, *normal, *(gguf.TokenType.UNUSED for _ in missing)])
    out.add_bos_token_id(0)
    out.add_eos_token_id(0)


class Tensors:
    """Adds a checkpoint's tensors to a GGUF file under its names, types and orientations."""

    def __init__(self, out, weights, quantized):
        self.out, self.weights, self.quantized = out, weights, quantized

    def add_all(self):
        self.add_matrix("token_embd", "emb")
        self.add_norm("token_embd_norm", "blocks.0.ln0")
        self.add_norm("output_norm", "ln_out")
        self.add_matrix("output", "head")
        for layer in range(count_layers(self.weights)):
            self.add_layer(layer, f"blk.{layer}.", f"blocks.{layer}.")

    def add_layer(self, layer, target, source):
        for name, gguf_name in NORMS.items():
            self.add_norm(target + gguf_name, source + name)
        self.add(f"{target}time_mix_lerp_fused", np.stack([self.weights[f"{source}att.x_{c}"] for c in "rwkvag"]))
        for name in "wavg":
            # Layer 0 has no value residual, but readers expect its tensors: those of `a` stand in.
            from_name = "a" if name == "v" and layer == 0 else name
            self.add_lora(f"{target}time_mix_{name}", f"{source}att.{from_name}")
        for name in ("k_k", "k_a", "r_k"):
            self.add(f"{target}time_mix_{name}", self.weights[f"{source}att.{name}"].reshape(-1))
        self.add(f"{target}channel_mix_lerp_k", self.weights[f"{source}ffn.x_k"].reshape(-1))
        for name, gguf_name in MATRICES.items():
            self.add_matrix(target + gguf_name, source + name)

    def add_lora(self, target, source):
        """The bias (the gate has none) and the pair, stored [out, in]: transposed against the checkpoint."""
        if source + "0" in self.weights:
            self.add(target + "0", self.weights[source + "0"].reshape(-1))
        dtype = np.float32 if target.endswith("_w") else np.float16  # as llama.cpp's converter has them
        for half in "12":
            self.add(target + half, self.weights[source + half].T, dtype)

    def add_norm(self, target, source):
        self.out.add_tensor(target + ".weight", self.weights[source + ".weight"].astype(np.float32))
        self.out.add_tensor(target + ".bias", self.weights[source + ".bias"].astype(np.float32))

    def add_matrix(self, target, source):
        matrix = self.weights[source + ".weight"]
        if self.quantized:
            q8_0 = gguf.GGMLQuantizationType.Q8_0
            blocks = gguf.quants.quantize(matrix.astype(np.float32), q8_0)
            self.out.add_tensor(target + ".weight", blocks, raw_dtype=q8_0)
        else:
            self.add(target, matrix, np.float16)

    def add(self, target, values, dtype=np.float32):
        self.out.add_tensor(target + ".weight", np.ascontiguousarray(values, dtype))


if __name__ == "__main__":
    main()
