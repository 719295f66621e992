"""Books and vocabulary: what the demo model is trained on, as tokens."""

import ast
import os
import re

# Books whose line breaks carry meaning, by how their file names begin.
VERSE = ("blake", "milton", "shakespeare", "whitman")
HELD_OUT = 0.05


def read_books(folder):
    """Returns [(training text, held-out text)], one pair a file; the held-out part is the end of the book."""
    books = []
    for name in sorted(os.listdir(folder)):
        with open(os.path.join(folder, name), "rb") as file:
            text = clean(file.read().decode("utf-8", "replace"), verse=name.startswith(VERSE))
        cut = text.rfind("\n", 0, int(len(text) * (1 - HELD_OUT))) + 1
        books.append((text[:cut], text[cut:]))
    return books


def clean(text, verse):
    """Removes what plain-text editions add: emphasis marks and, in prose, the line breaks inside a paragraph."""
    text = text.replace("\r\n", "\n").replace("\t", " ").replace("_", "").replace("--", " -- ")
    if verse:
        text = re.sub(r"\n{3,}", "\n\n", text)
    else:
        paragraphs = (re.sub(r"\s+", " ", paragraph).strip() for paragraph in re.split(r"\n\s*\n", text))
        text = "\n".join(filter(None, paragraphs))
    return re.sub(r" {2,}", " ", text)


def build_vocabulary(texts, size):
    """Returns the token bytes in id order, as the World vocabulary has them: 0 ends a text, then every single byte,
    then longer pieces by length. The pieces are those that byte-pair encoding finds in `texts`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    byte_level = pre_tokenizers.ByteLevel
    trainer = trainers.BpeTrainer(vocab_size=size - 1, initial_alphabet=byte_level.alphabet(), show_progress=False)
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = byte_level(add_prefix_space=False)
    bpe.train_from_iterator(texts, trainer)

    byte_of = byte_level_bytes()
    pieces = {bytes(byte_of[char] for char in token) for token in bpe.get_vocab()}
    singles = [bytes([byte]) for byte in range(256)]
    longer = sorted((piece for piece in pieces if len(piece) > 1), key=lambda piece: (len(piece), piece))
    return [b"", *(singles + longer)[: size - 1]]


def byte_level_bytes():
    """Maps each character of byte-level BPE to its byte: Latin-1's printable characters stand for themselves, and
    the remaining bytes, in order, are U+0100 and up."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def write_vocabulary(path, vocabulary):
    """Writes World-style lines `ID LITERAL LENGTH`; id 0, which has no text, is left out."""
    with open(path, "w", encoding="utf-8") as file:
        for token, piece in enumerate(vocabulary[1:], 1):
            try:
                literal = repr(piece.decode())
            except UnicodeDecodeError:
                literal = repr(piece)
            file.write(f"{token} {literal} {len(piece)}\n")


def read_vocabulary(path):
    """Returns the token bytes in id order, the empty id 0 included: the inverse of `write_vocabulary`."""
    vocabulary = [b""]
    with open(path, encoding="utf-8") as file:
        for line in file:
            # A literal may itself hold spaces: only the first and the last separate the fields.
            literal = ast.literal_eval(line[line.index(" ") + 1 : line.rindex(" ")])
            vocabulary.append(literal if isinstance(literal, bytes) else literal.encode())
    return vocabulary


def encode(vocabulary, texts):
    """Returns the tokens of all texts, each text preceded by token 0; the longest matching piece wins."""
    token_of = {piece: token for token, piece in enumerate(vocabulary) if piece}
    longest = max(map(len, token_of))
    tokens = []
    for text in texts:
        tokens.append(0)
        data, at = text.encode(), 0
        while at < len(data):
            piece = data[at : at + longest]
            while piece not in token_of:  # ends at the latest with one byte: all of them are tokens
                piece = piece[:-1]
            tokens.append(token_of[piece])
            at += len(piece)
    return tokens
