#!/usr/bin/env python3
"""Packs the World vocabulary text into the asset that the tokenizer embeds.

    python3 pack_vocab.py rwkv_vocab_v20230424.txt world_v20230424.zz

README.md beside this file describes the asset. The last line printed is the hash that the test of
`src/tokenizer/world.rs` expects.
"""
import ast
import os
import sys
import zlib


def read_vocab(path):
    """Tokens in id order: lines are `ID literal LENGTH`, ids 1, 2, 3, …"""
    tokens = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            first, last = line.index(" "), line.rindex(" ")
            literal = ast.literal_eval(line[first + 1 : last])
            token = literal.encode() if isinstance(literal, str) else literal
            assert int(line[:first]) == number, f"line {number}: ids must be contiguous from 1"
            assert int(line[last:]) == len(token), f"line {number}: wrong length"
            tokens.append(token)
    # The asset has no ids: they follow from this order.
    assert tokens == sorted(set(tokens), key=lambda token: (len(token), token)), "tokens must be ordered by length, then bytes"
    return tokens


def pack(tokens):
    """Front coding: each token, in byte order, as the length it shares with the one before it and the rest."""
    shared, own, rest, previous = bytearray(), bytearray(), bytearray(), b""
    for token in sorted(tokens):
        keep = len(os.path.commonprefix([previous, token]))
        shared.append(keep)
        own.append(len(token) - keep)
        rest += token[keep:]
        previous = token
    plain = len(tokens).to_bytes(4, "little") + shared + own + rest
    deflate = zlib.compressobj(9, zlib.DEFLATED, 15, 9)
    return deflate.compress(bytes(plain)) + deflate.flush()


def unpack(packed):
    """The reader in `src/tokenizer/world.rs`, in Python."""
    plain = zlib.decompress(packed)
    count = int.from_bytes(plain[:4], "little")
    shared, own, rest = plain[4 : 4 + count], plain[4 + count : 4 + 2 * count], plain[4 + 2 * count :]
    tokens, previous, at = [], b"", 0
    for keep, new in zip(shared, own):
        previous = previous[:keep] + rest[at : at + new]
        at += new
        tokens.append(previous)
    return sorted(tokens, key=len)  # stable: byte order stays within one length


def fnv1a_64(tokens):
    """FNV-1a of every (id, length, bytes), id and length as little-endian u32."""
    state = 0xCBF29CE484222325
    for number, token in enumerate(tokens, start=1):
        for byte in number.to_bytes(4, "little") + len(token).to_bytes(4, "little") + token:
            state = (state ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return state


def main():
    source, target = sys.argv[1:]
    tokens = read_vocab(source)
    packed = pack(tokens)
    assert unpack(packed) == tokens
    with open(target, "wb") as file:
        file.write(packed)
    print(f"{len(tokens)} tokens, {sum(map(len, tokens))} bytes, packed into {len(packed)} bytes")
    print(f"FNV-1a 64: {fnv1a_64(tokens):#018x}")


if __name__ == "__main__":
    main()
