from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import FIRST_ORDINARY, documents_in

from tencentpretrain.config import PreprocessConfig
from tencentpretrain.data import duplicates
from tencentpretrain.data.duplicates import DigestSet
from tencentpretrain.data.preprocess import preprocess
from tencentpretrain.data.store import TokenStore
from tencentpretrain.tokenizers import Tokenizer

few = st.integers(0, 2)
documents = st.lists(st.lists(st.lists(few, min_size=1, max_size=2), min_size=1, max_size=3), max_size=25)


@given(
    documents=documents,
    layout=st.sampled_from(["sentences", "documents", "labelled", "pairs"]),
    block_size=st.integers(1, 60),
    processes_num=st.sampled_from([1, 1, 1, 1, 1, 3]),
)
@settings(max_examples=60, deadline=None)
def test_the_first_of_equal_documents_stays(
    documents: list[list[list[int]]],
    layout: str,
    block_size: int,
    processes_num: int,
    tokenizer: Tokenizer,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("any")
    documents = [[[9], [9, 9]], *documents, [[8], [9]]]
    if layout == "documents":
        documents = [document[:1] for document in documents]
    if layout == "pairs":
        documents = [(document * 2)[:2] for document in documents]
    if layout == "labelled":
        documents = [document[:2] for document in documents]
    labels = [len(document) % 2 + number % 2 for number, document in enumerate(documents)]
    lines = []
    for document, label in zip(documents, labels, strict=True):
        texts = [" ".join(map(str, sentence)) for sentence in document]
        if layout == "sentences":
            lines += [*texts, ""]
        else:
            lines.append("\t".join([str(label)] * (layout == "labelled") + texts))
    (path / "corpus.txt").write_text("\n".join(lines), encoding="utf-8")
    config = PreprocessConfig(
        corpus_path=(str(path / "corpus.txt"),),
        dataset_path=str(path / "store"),
        processes_num=processes_num,
        dedup="exact",
    )
    report = preprocess(config, layout, tokenizer, block_size=block_size)
    store = TokenStore.open(path / "store")
    if layout != "labelled":
        labels = [0] * len(documents)
    keys = [(repr(document), label) for document, label in zip(documents, labels, strict=True)]
    firsts = [number for number, key in enumerate(keys) if key not in keys[:number]]
    assert documents_in(store) == [
        [[id + FIRST_ORDINARY for id in sentence] for sentence in documents[number]] for number in firsts
    ]
    if layout == "labelled":
        assert store.labels_at(np.arange(len(firsts))).tolist() == [labels[number] for number in firsts]
    assert report.duplicates_num == len(documents) - len(firsts)
    assert (f"{report.duplicates_num} documents were there before" in str(report)) == (
        report.duplicates_num > 0
    )
    shutil.rmtree(path)


def test_digests_that_share_a_half_differ(tmp_path: Path) -> None:
    found = DigestSet(tmp_path)
    for digest in ([1, 1], [1, 2], [2, 1], [0, 1]):
        assert found.add(np.array([digest], np.uint64)).tolist() == [True]


def test_digests_that_were_there_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "LARGEST_RUN", 30)
    generator = np.random.default_rng(0)
    opened = len(list(Path("/proc/self/fd").iterdir()))
    found = DigestSet(tmp_path)
    seen: set[tuple[int, ...]] = set()
    for _ in range(200):
        digests = generator.integers(0, 2**64, (generator.integers(0, 6), 2), dtype=np.uint64)
        if seen and len(digests):
            digests = np.concatenate((digests, np.array(sorted(seen)[:3], np.uint64), digests[:1]))
        expected = []
        for digest in map(tuple, digests.tolist()):
            expected.append(digest not in seen)
            seen.add(digest)
        assert found.add(digests).tolist() == expected
    assert all(len(high) <= 30 for high, _ in found._runs)
    on_disk = [high for high, _ in found._runs if isinstance(high, np.memmap)]
    assert len(list(Path("/proc/self/fd").iterdir())) - opened <= len(on_disk)
    in_memory = [len(high) for high, _ in found._runs if not isinstance(high, np.memmap)]
    assert sum(in_memory) <= 60 and len(in_memory) < len(found._runs) / 2
    assert not list(tmp_path.iterdir())
