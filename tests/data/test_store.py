from __future__ import annotations

import contextlib
import itertools
import json
import pickle
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import Documents, PlainTokenizer, documents_in, random_documents, write_store

from tencentpretrain.config.data import DataConfig
from tencentpretrain.data.loader import Loader
from tencentpretrain.data.store import TokenStore
from tencentpretrain.data.writer import StoreWriter, check_replaceable
from tencentpretrain.errors import DataError, UserError
from tencentpretrain.registry import PROCESSORS
from tencentpretrain.tokenizers import Tokenizer

SOME: Documents = [[[5, 6], [7]], [[8, 9, 10]], [[11], [12], [13, 14]], [[15]]]

ids = st.integers(0, 999)
sentences = st.lists(ids, min_size=1, max_size=5)


def write(
    path: Path,
    tokenizer: Tokenizer,
    documents: Documents,
    layout: str = "sentences",
    shard_tokens: int = 2**30,
    calls: int = 1,
) -> TokenStore:
    """Write `documents` with about `calls` calls, cut anywhere between sentences."""
    path.mkdir(parents=True)
    writer = StoreWriter(path, tokenizer, layout, shard_tokens=shard_tokens)
    flat = [sentence for document in documents for sentence in document]
    starts = np.cumsum([0, *map(len, documents[:-1])]) if documents else np.empty(0, int)
    labels = np.arange(len(documents)) % 3
    borders = np.linspace(0, len(flat), calls + 1).astype(int)
    for low, high in itertools.pairwise(borders):
        here = (starts >= low) & (starts < high)
        part = flat[low:high]
        writer.append(
            np.array([id for sentence in part for id in sentence], np.uint16),
            np.array([len(sentence) for sentence in part], np.int64),
            starts[here] - low,
            labels[here].astype(np.int32) if layout == "labelled" else None,
        )
    writer.close({"seq_length": 64}, {})
    return TokenStore.open(path)


@given(
    documents=st.lists(st.lists(sentences, min_size=1, max_size=4), min_size=1, max_size=12),
    shard_tokens=st.integers(1, 40),
    calls=st.integers(1, 6),
)
@settings(max_examples=40, deadline=None)
def test_every_document_once_for_any_shards_and_calls(
    documents: Documents,
    shard_tokens: int,
    calls: int,
    tokenizer: Tokenizer,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("any") / "store"
    store = write(path, tokenizer, documents, "labelled", shard_tokens, calls)
    assert documents_in(store) == documents
    every = np.arange(store.sentences_num)
    owners = [number for number, document in enumerate(documents) for _ in document]
    assert store.document_of_sentence(every).tolist() == owners
    assert store.labels_at(np.arange(len(documents))).tolist() == [
        number % 3 for number in range(len(documents))
    ]
    assert store.labels_num == min(len(documents), 3)
    for shard in store.shards:  # all but the last are full, and no further than the document that filled them
        assert shard is store.shards[-1] or len(shard.tokens) >= shard_tokens
    store.verify()
    shutil.rmtree(path)


def test_accessors_keep_the_shape_and_give_int64(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for shard_tokens in (2**30, 3):
        store = write(tmp_path / str(shard_tokens), tokenizer, SOME, shard_tokens=shard_tokens, calls=4)
        assert (len(store.shards) > 1) == (shard_tokens == 3)
        grid = np.array([[0, 5], [10, 3]])
        assert store.tokens_at(grid).tolist() == [[5, 10], [15, 8]]
        for accessor in (store.tokens_at, store.sentence_starts, store.document_of_sentence):
            found = accessor(np.array([[0, 1, 2], [3, 4, 5]]))
            assert found.shape == (2, 3)
            assert found.dtype == np.int64


def test_a_store_of_many_files(tokenizer: Tokenizer, tmp_path: Path) -> None:
    documents = [[[number, 5], [6]] for number in range(200)]
    write(tmp_path / "store", tokenizer, documents, shard_tokens=2, calls=300)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(300, limits[1]), limits[1]))
    try:
        store = TokenStore.open(tmp_path / "store")
        assert len(store.shards) > 150
        assert documents_in(store) == documents
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_documents_of_one_sentence_need_no_index(tokenizer: Tokenizer, tmp_path: Path) -> None:
    documents = [[[5, 6]], [[7]], [[8, 9]]]
    for layout in ("documents", "labelled", "sentences"):
        store = write(tmp_path / layout, tokenizer, documents, layout)
        assert not list((tmp_path / layout).glob("*.documents"))
        assert store.shards[0].documents is None
        assert documents_in(store) == documents


def test_repeated_and_trailing_starts_are_no_documents(tokenizer: Tokenizer, tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, tokenizer, "sentences")
    writer.append(np.array([5, 6]), np.array([1, 1]), np.array([0, 0, 1, 1, 2, 2]))
    writer.append(np.empty(0, int), np.empty(0, int), np.array([0]))
    writer.append(np.array([7, 8, 9]), np.array([1, 2]), np.array([0, 2]))
    writer.close({}, {})
    assert documents_in(TokenStore.open(tmp_path)) == [[[5]], [[6]], [[7], [8, 9]]]


def test_blank_beginnings(tokenizer: Tokenizer, tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, tokenizer, "sentences")
    writer.append(np.empty(0, int), np.empty(0, int), np.array([0]))
    writer.append(np.array([5]), np.array([1]), np.empty(0, int))
    writer.close({}, {})
    assert documents_in(TokenStore.open(tmp_path)) == [[[5]]]


def test_the_store_carries_tokenizer_and_options(tokenizer: Tokenizer, tmp_path: Path) -> None:
    store = write(tmp_path / "store", tokenizer, SOME)
    assert store.tokenizer.fingerprint == tokenizer.fingerprint
    assert store.tokenizer.encode("a 17 b") == tokenizer.encode("a 17 b")
    assert store.options == {"seq_length": 64}
    again = pickle.loads(pickle.dumps(store))
    assert documents_in(again) == SOME


def test_a_large_vocabulary_takes_four_bytes(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "vocab_size", 2**16)
    assert write(tmp_path / "small", tokenizer, SOME).shards[0].tokens.dtype == np.uint16
    monkeypatch.setattr(tokenizer, "vocab_size", 2**16 + 1)
    store = write(tmp_path / "large", tokenizer, SOME)
    assert store.shards[0].tokens.dtype == np.uint32
    assert documents_in(store) == SOME


def change_meta(path: Path, **values: object) -> None:
    meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
    (path / "meta.json").write_text(json.dumps({**meta, **values}), encoding="utf-8")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: cut(path / "00000.tokens"), "has 21 bytes instead of 22: the token store is truncated"),
        (lambda path: cut(path / "00000.documents"), "truncated"),
        (lambda path: (path / "00000.sentences").unlink(), "00000.sentences is missing"),
        (lambda path: (path / "meta.json").unlink(), "has no meta.json, so it is incomplete"),
        (lambda path: cut(path / "meta.json") or cut(path / "meta.json"), "not a usable token store.*line"),
        (lambda path: change_meta(path, version=2), "version 2, but this program reads version 1"),
        (lambda path: change_meta(path, format="else"), "its meta.json is of something else"),
        (lambda path: change_meta(path, shards=[]), "do not add up"),
        (lambda path: change_meta(path, shards=[{"files": {}}]), "is damaged"),
        (lambda path: change_meta(path, corpus=None), "is damaged"),
        (
            lambda path: change_meta(path, tokenizer={"kind": "bert", "fingerprint": "0", "vocab_size": "9"}),
            "is damaged",
        ),
        (lambda path: change_meta(path, tokens_num=99), "do not add up"),
        (lambda path: change_meta(path, dtype="uint32"), "do not fit each other"),
    ],
)
def test_damaged_stores_are_named(damage: object, message: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    write(tmp_path / "store", tokenizer, SOME)
    assert callable(damage)
    damage(tmp_path / "store")
    with pytest.raises(DataError, match=message):
        TokenStore.open(tmp_path / "store")


def test_verify_finds_changed_contents(tokenizer: Tokenizer, tmp_path: Path) -> None:
    store = write(tmp_path / "store", tokenizer, SOME)
    path = tmp_path / "store" / "00000.tokens"
    content = bytearray(path.read_bytes())
    content[4] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"00000.tokens was changed after it was made \(its checksum"):
        store.verify()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: change_meta(path, corpus={"lines_num": 9}), r"meta.json was changed after it was made"),
        (lambda path: shutil.rmtree(path / "tokenizer"), "tokenizer"),
        (
            lambda path: (path / "tokenizer" / "vocab.txt").write_text("[PAD]\n[UNK]\n"),
            "files of the tokenizer were changed",
        ),
    ],
)
def test_verify_covers_all_of_a_store(
    damage: object, message: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    write(tmp_path / "store", tokenizer, SOME).verify()
    assert callable(damage)
    damage(tmp_path / "store")
    with pytest.raises(UserError, match=message):
        TokenStore.open(tmp_path / "store").verify()


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["sentences", "documents"]), st.integers(0, 10_000), st.integers(0, 7))
def test_a_flipped_bit_of_a_border_never_leads_elsewhere(
    tmp_path_factory: pytest.TempPathFactory, name: str, place: int, bit: int
) -> None:
    """A border that is still between its neighbours gives other samples; nothing gives another error."""
    path = tmp_path_factory.mktemp("flipped") / "store"
    write_store(path, random_documents(12, (2, 6)))
    content = bytearray((path / f"00000.{name}").read_bytes())
    content[place % len(content)] ^= 1 << bit
    (path / f"00000.{name}").write_bytes(content)
    for processor in ("bert", "mlm", "lm", "bart", "gsg"):
        with contextlib.suppress(DataError):
            config = DataConfig(data_processor=processor, seq_length=16)
            made = PROCESSORS[processor](TokenStore.open(path), config, PlainTokenizer(2**16))
            for _ in Loader(made, 16).one_pass():
                pass


@pytest.mark.parametrize("at_once", [2, 100])
@pytest.mark.parametrize("name", ["00000.sentences", "00000.documents"])
def test_borders_that_do_not_ascend_are_found(
    name: str, at_once: int, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tencentpretrain.data.store._AT_ONCE", at_once)
    write(tmp_path / "store", tokenizer, SOME)
    content = (tmp_path / "store" / name).read_bytes()
    TokenStore.open(tmp_path / "store").check_borders()
    for place in range(0, len(content) - 4, 4):
        (tmp_path / "store" / name).write_bytes(content[:place] + b"\xff\0\0\0" + content[place + 4 :])
        with pytest.raises(DataError, match=r"store was changed after it was made \(borders"):
            TokenStore.open(tmp_path / "store").check_borders()


@pytest.mark.parametrize("shard_tokens", [3, 100])
def test_ids_outside_the_vocabulary_are_found(
    shard_tokens: int, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    store = write(tmp_path / "store", tokenizer, SOME, shard_tokens=shard_tokens)
    path = tmp_path / "store" / "00000.tokens"
    path.write_bytes(b"\xff" * 2 + path.read_bytes()[2:])
    with pytest.raises(DataError, match=r"store was changed after it was made \(id 65535 in its tokens"):
        store.tokens_at(np.arange(4))
    assert store.tokens_at(np.arange(1, 4)).tolist() == [6, 7, 8]


def test_another_tokenizer_inside_is_found(tokenizer: Tokenizer, tmp_path: Path) -> None:
    store = write(tmp_path / "store", tokenizer, SOME)
    change_meta(tmp_path / "store", tokenizer={"kind": "bert", "fingerprint": "0", "vocab_size": 1})
    store = TokenStore.open(tmp_path / "store")
    with pytest.raises(DataError, match="not the tokenizer the store was made with"):
        _ = store.tokenizer


def test_what_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "dataset.pt").write_bytes(b"\x80\x04")
    (tmp_path / "other").mkdir()
    for name, message in (
        ("dataset.pt", "is a file, expected the directory of a token store"),
        ("other", "is not a token store"),
        ("nothing", "there is no such token store"),
    ):
        with pytest.raises(DataError, match=message):
            TokenStore.open(tmp_path / name)


def test_only_stores_are_replaceable(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write(tmp_path / "store", tokenizer, SOME)
    write(tmp_path / "damaged", tokenizer, SOME)
    (tmp_path / "damaged" / "00000.tokens").unlink()
    (tmp_path / "empty").mkdir()
    for name in ("nothing", "store", "damaged", "empty"):
        check_replaceable(tmp_path / name)
    write(tmp_path / "mixed", tokenizer, SOME)
    (tmp_path / "mixed" / "notes.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "file.pt").write_bytes(b"\x80\x04")
    (tmp_path / "tokenizers" / "tokenizer").mkdir(parents=True)
    for name, message in (
        ("mixed", "holds 'notes.txt'"),
        ("file.pt", "is a file, no token store"),
        ("tokenizers", "is a directory, no token store"),
        ("file.pt/x/y", r"^--dataset_path .*file\.pt/x/y: .*file\.pt is a file"),
    ):
        with pytest.raises(DataError, match=message):
            check_replaceable(tmp_path / name)
