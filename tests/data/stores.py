"""Small token stores of given documents, for tests of what is built from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tencentpretrain.data.store import TokenStore
from tencentpretrain.data.writer import StoreWriter
from tencentpretrain.errors import DataError

PAD, UNK, CLS, SEP, MASK = range(5)
FIRST_ORDINARY = 5

Documents = list[list[list[int]]]


class PlainTokenizer:
    """A vocabulary of numbers. Ids 0 to 4 are special; every third of the others continues a word."""

    kind = "plain"
    fingerprint = "plain"
    pad_id = PAD
    starts_with_cls = True

    def __init__(self, vocab_size: int = 1000, mask: bool = True, one_separator: bool = False) -> None:
        self.vocab_size = vocab_size
        self.roles = {"pad": PAD, "unk": UNK, "cls": CLS, "sep": CLS if one_separator else SEP, "mask": MASK}
        if not mask:
            del self.roles["mask"]
        self.special_ids = frozenset(range(FIRST_ORDINARY))
        self.continues_word = (np.arange(vocab_size) % 3 == 0) & (np.arange(vocab_size) >= FIRST_ORDINARY)

    def require(self, role: str) -> int:
        if role not in self.roles:
            raise DataError(f"the vocabulary has no token for '{role}'")
        return self.roles[role]

    def save(self, directory: Path) -> None:
        directory.mkdir()


def write_store(
    directory: Path,
    documents: list[list[list[int]]],
    layout: str = "sentences",
    labels: list[int] | None = None,
    shard_tokens: int = 2**30,
) -> TokenStore:
    """A store of documents, each a list of sentences, each a list of ids."""
    directory.mkdir(parents=True)
    writer = StoreWriter(directory, PlainTokenizer(2**16), layout, shard_tokens=shard_tokens)  # type: ignore[arg-type]
    for number, document in enumerate(documents):
        writer.append(
            np.concatenate([np.array(sentence, np.int64) for sentence in document]),
            np.array([len(sentence) for sentence in document]),
            np.array([0]),
            None if labels is None else np.array([labels[number]]),
        )
    writer.close({}, {})
    return TokenStore.open(directory)


def random_documents(
    documents_num: int, sentences: tuple[int, int] = (1, 8), tokens: tuple[int, int] = (1, 20), seed: int = 0
) -> list[list[list[int]]]:
    """Documents of random numbers of sentences of random numbers of tokens (both limits included)."""
    generator = np.random.default_rng(seed)
    return [
        [
            generator.integers(FIRST_ORDINARY, 1000, generator.integers(tokens[0], tokens[1] + 1)).tolist()
            for _ in range(generator.integers(sentences[0], sentences[1] + 1))
        ]
        for _ in range(documents_num)
    ]


def documents_in(store: TokenStore) -> Documents:
    """What `write_store` wrote: documents of sentences of ids."""
    documents = np.arange(store.documents_num)
    return [
        [
            store.tokens_at(np.arange(start, end)).tolist()
            for start, end in zip(
                store.sentence_starts(np.arange(first, last)),
                store.sentence_ends(np.arange(first, last)),
                strict=True,
            )
        ]
        for first, last in zip(store.document_starts(documents), store.document_ends(documents), strict=True)
    ]
