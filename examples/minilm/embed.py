"""Embed sentences through the loader, without torch, and show which are near to which."""

import sys
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

import packager

SENTENCES = (
    "A man is playing the guitar.",
    "Somebody plays an instrument.",
    "The stock market fell sharply today.",
    "Shares dropped a lot this afternoon.",
    "My cat sleeps on the sofa.",
)


def main(path: str) -> None:
    """Print the cosine similarities of the sentences; similar ones must be nearest to each other."""
    bundle = packager.load(path)
    tokenizer = Tokenizer.from_file(str(Path(path) / "assets/pretrained/tokenizer.json"))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(256)
    encoded = tokenizer.encode_batch(list(SENTENCES))
    embeddings = bundle.run(
        {
            "input_ids": np.array([one.ids for one in encoded], dtype=np.int64),
            "attention_mask": np.array([one.attention_mask for one in encoded], dtype=np.int64),
        }
    )["embedding"]
    similarity = embeddings @ embeddings.T
    print(f"{bundle.name} {bundle.version} on {bundle.backend}, torch imported: {'torch' in sys.modules}")
    for sentence, row in zip(SENTENCES, similarity, strict=True):
        print(f"{sentence:<40}" + "".join(f"{value:7.2f}" for value in row))
    np.fill_diagonal(similarity, -1)
    nearest = similarity.argmax(1)
    if [int(nearest[one]) for one in range(4)] != [1, 0, 3, 2]:
        raise SystemExit("similar sentences are not nearest to each other")
    print("similar sentences are nearest to each other")


if __name__ == "__main__":
    main(sys.argv[1])
