#!/usr/bin/env python3
"""Trains the demo model: a small RWKV-7 on a folder of plain-text books.

Writes vocab.txt, demo.safetensors (f16, the original checkpoints' names), held_out.txt and report.json.
The last 5 % of every book is held out: no training step sees it. Needs a CUDA GPU and the packages torch,
flash-linear-attention, tokenizers, safetensors and numpy. The defaults are those of the published model.
"""

import argparse
import json
import os

from corpus import build_vocabulary, encode, read_books, write_vocabulary


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", help="folder of books, one text file each, read in the order of their names")
    parser.add_argument("out", help="folder for the results")
    for name, default, meaning in (
        ("minutes", 3.0, "stop after this time even if steps remain"),
        ("layers", 8, "number of layers"),
        ("dim", 256, "width of the residual stream, a multiple of 64"),
        ("vocab", 4096, "number of tokens"),
        ("batch", 32, "sequences a step"),
        ("context", 512, "tokens a sequence"),
        ("lr", 2e-3, "peak learning rate"),
        ("dropout", 0.15, "share of each layer's outputs dropped"),
        ("epochs", 6.0, "passes over the training tokens"),
        ("seed", 1, "seed of weights and batches"),
    ):
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"{meaning} (default: {default})")
    return parser.parse_args()


def main():
    args = parse_arguments()
    # Only here: --help works without them.
    import numpy as np
    from safetensors.numpy import save_file

    from fit import fit

    os.makedirs(args.out, exist_ok=True)
    train_texts, held_out_texts = zip(*read_books(args.corpus))
    vocabulary = build_vocabulary(train_texts, args.vocab)
    train = np.array(encode(vocabulary, train_texts), np.int64)
    held_out = np.array(encode(vocabulary, held_out_texts), np.int64)
    held_out_text = "".join(held_out_texts)
    held_out_bytes = len(held_out_text.encode())
    print(f"{len(train)} training tokens, {len(held_out)} held out ({held_out_bytes} bytes)", flush=True)

    weights, report = fit(train, held_out, held_out_bytes, args)
    report["args"] = {name: value for name, value in vars(args).items() if name not in ("corpus", "out")}

    write_vocabulary(os.path.join(args.out, "vocab.txt"), vocabulary)
    metadata = {"format": "pt", "license": "CC0-1.0", "source": "trained from scratch on public-domain books"}
    save_file(weights, os.path.join(args.out, "demo.safetensors"), metadata)
    with open(os.path.join(args.out, "held_out.txt"), "w", encoding="utf-8", newline="\n") as file:
        file.write(held_out_text)
    with open(os.path.join(args.out, "report.json"), "w", encoding="utf-8") as file:
        json.dump(report, file, indent=1)
    print(json.dumps({name: value for name, value in report.items() if name != "log"}))


if __name__ == "__main__":
    main()
