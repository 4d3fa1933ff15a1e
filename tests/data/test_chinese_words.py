"""Words that no vocabulary shows: found when a corpus is tokenised, hidden whole when it is trained on."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from stores import FIRST_ORDINARY, documents_in
from test_new_processors import SentinelTokenizer, sources, targets
from test_resume import contents
from tokenizers import models, pre_tokenizers, trainers

from tencentpretrain.batch import IGNORED
from tencentpretrain.config import DataConfig, PreprocessConfig, TokenizerConfig
from tencentpretrain.data import preprocess as module
from tencentpretrain.data.merge import MergeConfig, merge
from tencentpretrain.data.preprocess import preprocess
from tencentpretrain.data.program import read_job
from tencentpretrain.data.store import CONTINUES, TokenStore
from tencentpretrain.data.words import Segmenter, is_chinese
from tencentpretrain.data.writer import StoreWriter
from tencentpretrain.errors import ConfigError, DataError
from tencentpretrain.registry import PROCESSORS
from tencentpretrain.tokenizers import Tokenizer, build_tokenizer
from tencentpretrain.training.pretraining import describe_data, make_engine, make_loader
from tencentpretrain.training.settings import read_settings

ROOT = Path(__file__).parents[2]
# Of characters so rare that jieba knows no words of them; each stands in one place of one word.
WORDS = ["龘靐", "齉爩鱻", "灪龗厵滟", "爨OK", "癵驫"]
ENTRIES = "\ufeff龘靐 5 n\n齉爩鱻 100\n\n灪龗厵滟 nz\r\n爨OK\n癵驫\n"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = ["play", "##ing", "##ed", "ok", "，", "。", "!", "0", " "]
TEXT = "龘靐，playing齉爩鱻! played 灪龗厵滟爨OK癵驫。"
OTHERS = ["，", "。", " playing ", " played ", " ", "! "]
KINDS = ["bert", "char", "bytes", "merged", "spm", "xlmroberta", "fallback"]

texts = st.lists(st.sampled_from([*WORDS, *OTHERS]), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def dictionary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dictionary") / "user.txt"
    path.write_bytes(ENTRIES.encode("utf-8"))
    return path


@pytest.fixture(scope="module")
def segmenter(dictionary: Path) -> Segmenter:
    return Segmenter(str(dictionary))


@pytest.fixture(scope="module")
def by_kind(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """Tokenizers of every kind: "bytes" cuts all characters, "merged" and "spm" have tokens of several words,
    "fallback" cuts some characters.
    """
    root = tmp_path_factory.mktemp("vocabularies")
    vocab_path, known = str(root / "vocab.txt"), [TEXT * 3, "龘靐癵驫" * 3, "playing played " * 3]
    characters = sorted({*"".join(WORDS)} - {*"OK"})
    Path(vocab_path).write_text("\n".join([*SPECIAL, *PIECES, *characters]) + "\n", encoding="utf-8")
    configs = {
        "bert": TokenizerConfig(vocab_path=vocab_path),
        "char": TokenizerConfig(tokenizer="char", vocab_path=vocab_path),
    }
    for name, size in (("bytes", 257), ("merged", 330)):
        rust = tokenizers.Tokenizer(models.BPE())
        rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet, special = pre_tokenizers.ByteLevel.alphabet(), ["<|endoftext|>"]
        trainer = trainers.BpeTrainer(
            vocab_size=size, initial_alphabet=alphabet, special_tokens=special, show_progress=False
        )
        rust.train_from_iterator(known, trainer)
        (root / name).mkdir()
        rust.model.save(str(root / name))
        merges_path = root / name / "merges.txt"
        if name == "bytes":
            merges_path.write_text("#version: 0.2\nĠ é\n", encoding="utf-8")  # space and a byte of 龘
            vocabulary = json.loads((root / name / "vocab.json").read_text(encoding="utf-8"))
            vocabulary = {token: id for token, id in vocabulary.items() if id < 257}
            vocabulary["Ġé"] = 257
            (root / name / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        configs[name] = TokenizerConfig(
            tokenizer="bpe", vocab_path=str(root / name / "vocab.json"), merges_path=str(merges_path)
        )
    for name, lines, options in (
        ("spm", known, {"vocab_size": 70}),
        ("fallback", known[1:], {"vocab_size": 300, "byte_fallback": True}),
    ):
        model = io.BytesIO()
        options |= {"minloglevel": 2, "hard_vocab_limit": False}
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=model, **options)
        (root / f"{name}.model").write_bytes(model.getvalue())
        configs[name] = TokenizerConfig(tokenizer="sentencepiece", spm_model_path=str(root / f"{name}.model"))
    configs["xlmroberta"] = TokenizerConfig(tokenizer="xlmroberta", spm_model_path=str(root / "spm.model"))
    return {kind: build_tokenizer(config) for kind, config in configs.items()}


def words_of(tokenizer: Tokenizer, segmenter: Segmenter, texts: list[str]) -> list[list[list[int]]]:
    """Of each text its words, each its ids."""
    ids, lengths = tokenizer.encode_batch(texts, special_tokens=False)
    rows = np.split(
        np.stack([ids, segmenter.continues(texts, tokenizer, ids, lengths)]), np.cumsum(lengths)[:-1], 1
    )
    found = []
    for row in rows:
        assert not row[1, :1].any()  # a text begins with a word
        words = np.split(row[0], np.flatnonzero(row[1, 1:] == 0) + 1)
        found.append([word.tolist() for word in words if len(word)])
    return found


def test_words_as_text(by_kind: dict[str, Tokenizer], segmenter: Segmenter) -> None:
    (words, nothing, english) = words_of(by_kind["bert"], segmenter, [TEXT, " ", "playing played"])
    found = ["".join(by_kind["bert"].tokens[id] for id in word) for word in words]
    assert found == [
        "龘靐", "，", "play##ing", "齉爩鱻", "!", "play##ed", "灪龗厵滟", "爨ok", "癵驫", "。"
    ]  # fmt: skip
    assert not nothing
    assert [len(word) for word in english] == [2, 2]
    for kind in ("char", "bytes"):
        tokenizer = by_kind[kind]
        (words,) = words_of(tokenizer, segmenter, [TEXT])
        found = [tokenizer.decode(word) for word in words if len(word) > 1]
        chinese = [word.replace("[UNK]", "") for word in found if word.strip() and not word.isascii()]
        assert [word for word in chinese if word not in OTHERS] == [
            word.replace("OK", "") if kind == "char" else word for word in WORDS
        ]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(documents=st.lists(texts, min_size=1, max_size=4))
def test_words_begin_where_those_of_the_dictionary_do(
    by_kind: dict[str, Tokenizer], segmenter: Segmenter, kind: str, documents: list[list[str]]
) -> None:
    tokenizer = by_kind[kind]
    found = words_of(tokenizer, segmenter, ["".join(document) for document in documents])
    for document, words in zip(documents, found, strict=True):
        starts, inside, place = set(), set(), 0  # places without counting spaces
        for unit in document:
            size = len(unit.replace(" ", ""))
            if unit in WORDS:
                starts.add(place)
                inside |= set(range(place + 1, place + size))
            place += size
        ids: list[int] = []
        for word in words:
            for number, id in enumerate(word):
                before = tokenizer.decode(ids).replace("[UNK]", "0").replace(" ", "")
                at = len(before)
                if "�" in before:
                    assert number > 0  # inside a character
                elif at in starts and tokenizer.tokens[id] != "▁":
                    assert number == 0 or tokenizer.tokens[word[number - 1]] == "▁"
                elif at in inside:
                    assert number > 0
                ids.append(id)


def test_tokenizers_that_do_not_know_where_their_tokens_start(
    by_kind: dict[str, Tokenizer], segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = by_kind["bert"]
    monkeypatch.setattr(tokenizer, "token_starts", lambda texts: None)
    (words,) = words_of(tokenizer, segmenter, ["playing龘靐"])
    assert [len(word) for word in words] == [2, 1, 1]


def lines(document: list[str]) -> str:
    return "".join(document).strip() or "0"


def marks_in(store: TokenStore) -> list[bool]:
    return (store.marking_words().tokens_at(np.arange(store.tokens_num)) >= CONTINUES).tolist()


def config_for(path: Path, name: str = "store", **options: Any) -> PreprocessConfig:
    return PreprocessConfig(corpus_path=(str(path / "corpus.txt"),), dataset_path=str(path / name), **options)


@settings(max_examples=20, deadline=None)
@given(
    documents=st.lists(texts, min_size=1, max_size=30),
    layout=st.sampled_from(["documents", "sentences"]),
    block_size=st.integers(20, 400),
    shard_tokens=st.sampled_from([10, 2**30]),
    processes_num=st.sampled_from([1, 1, 1, 2]),
)
def test_a_store_knows_the_words_of_its_texts(
    by_kind: dict[str, Tokenizer], segmenter: Segmenter, tmp_path_factory: pytest.TempPathFactory,
    documents: list[list[str]], layout: str, block_size: int, shard_tokens: int, processes_num: int,
) -> None:  # fmt: skip
    path, tokenizer = tmp_path_factory.mktemp("any"), by_kind["bert"]
    found = [lines(document) for document in documents]
    (path / "corpus.txt").write_text(
        ("\n" if layout == "documents" else "\n\n").join(found), encoding="utf-8"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SHARD_TOKENS", shard_tokens)
        preprocess(
            config_for(path, processes_num=processes_num), layout, tokenizer,
            segmenter=segmenter, block_size=block_size,
        )  # fmt: skip
        preprocess(config_for(path, "plain"), layout, tokenizer, block_size=block_size)
    store, plain = TokenStore.open(path / "store"), TokenStore.open(path / "plain")
    store.verify()
    assert documents_in(store) == documents_in(plain)
    expected = [number > 0 for words in words_of(tokenizer, segmenter, found) for word in words
                for number in range(len(word))]  # fmt: skip
    assert marks_in(store) == expected
    assert marks_in(pickle.loads(pickle.dumps(store))) == expected
    assert pickle.loads(pickle.dumps(store.marking_words())).marks_words
    # Nothing but the words is added.
    kept = {name: content for name, content in contents(path / "store").items() if ".words" not in name}
    del kept["meta.json"]
    assert kept == {
        name: content for name, content in contents(path / "plain").items() if name != "meta.json"
    }
    assert store.has_words and not plain.has_words
    sizes = [file.stat().st_size for file in sorted((path / "store").glob("*.words"))]
    assert sizes == [-(-len(shard.tokens) // 8) for shard in store.shards]


def corpus(path: Path) -> None:
    generator = np.random.default_rng(3)
    texts = [generator.choice([*WORDS, *OTHERS], generator.integers(1, 9)).tolist() for _ in range(300)]
    (path / "corpus.txt").write_text("\n".join(map(lines, texts)), encoding="utf-8")


@pytest.mark.parametrize("dedup", [None, "exact"])
def test_interrupted_runs_and_parts_keep_words(
    by_kind: dict[str, Tokenizer], segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    dedup: str | None,
) -> None:  # fmt: skip
    corpus(tmp_path)
    tokenizer = by_kind["bert"]

    def run(name: str, **options: Any) -> Path:
        preprocess(
            config_for(tmp_path, name, **options), "documents", tokenizer, segmenter=segmenter, block_size=500
        )
        return tmp_path / name

    monkeypatch.setattr(module, "SAVE_SECONDS", 0)
    monkeypatch.setattr(module, "SHARD_TOKENS", 1000)
    whole = contents(run("whole", dedup=dedup))
    assert contents(run("two", dedup=dedup, processes_num=2)) == whole
    append, calls = StoreWriter.append, 0

    def interrupted(self: StoreWriter, *arguments: object) -> None:
        nonlocal calls
        calls += 1
        if calls % 2 == 0:
            raise KeyboardInterrupt
        append(self, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "append", interrupted)
        while not (tmp_path / "store").exists():
            with contextlib.suppress(KeyboardInterrupt):
                run("store", dedup=dedup)
    assert calls > 10
    assert contents(tmp_path / "store") == whole
    if dedup is None:
        parts = [str(run(f"part{number}", shard=f"{number}/3")) for number in (1, 2, 3)]
        joined = merge(MergeConfig(tuple(parts), str(tmp_path / "joined")))
        joined.verify()
        assert marks_in(joined) == marks_in(TokenStore.open(tmp_path / "whole"))
        preprocess(config_for(tmp_path, "without", shard="3/3"), "documents", tokenizer)
        with pytest.raises(DataError, match="cannot be joined: their words differs"):
            merge(MergeConfig((*parts[:2], str(tmp_path / "without")), str(tmp_path / "other")))
    file = tmp_path / "store" / "00000.words"
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    with pytest.raises(DataError, match=r"00000\.words was changed"):
        TokenStore.open(tmp_path / "store").verify()
    file.write_bytes(file.read_bytes()[1:])
    with pytest.raises(DataError, match="truncated"):
        TokenStore.open(tmp_path / "store")


def test_documents_of_equal_tokens_are_equal_whatever_their_words(
    by_kind: dict[str, Tokenizer], segmenter: Segmenter, tmp_path: Path
) -> None:
    (tmp_path / "corpus.txt").write_text("爨OK\n爨ok\n爨 ok\n癵\n", encoding="utf-8")
    preprocess(config_for(tmp_path, dedup="exact"), "documents", by_kind["bert"], segmenter=segmenter)
    store = TokenStore.open(tmp_path / "store")
    assert store.documents_num == 2
    assert marks_in(store) == [False, True, False]


Sentence = list[list[int]]  # words, each its ids
NAMES = ["mlm", "bert", "albert", "cls_mlm", "t5", "bart"]
LAYOUTS = {"cls_mlm": "labelled", "mlm": "documents", "t5": "documents"}  # the others take sentences
MASKINGS = st.sampled_from([{}, {"span_masking": True, "span_max_length": 3}])
SHARDS = st.sampled_from([10, 2**30])
SIZES = st.lists(
    st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=12), min_size=2, max_size=2),
    min_size=2, max_size=6,
)  # fmt: skip


def numbered(sizes: list[list[list[int]]]) -> list[list[Sentence]]:
    """Documents of sentences of words of so many tokens; every token is another one."""
    ids = iter(range(FIRST_ORDINARY, 2**15))
    return [[[[next(ids) for _ in range(size)] for size in sentence] for sentence in document]
            for document in sizes]  # fmt: skip


def write_words(path: Path, documents: list[list[Sentence]], layout: str, shard: int) -> TokenStore:
    path.mkdir()
    words = {"kind": "test", "fingerprint": ""}
    writer = StoreWriter(path, SentinelTokenizer(), layout, words=words, shard_tokens=shard)  # type: ignore[arg-type]
    for document in documents:
        tokens = [
            id + CONTINUES * (id != word[0]) for sentence in document for word in sentence for id in word
        ]
        lengths = np.array([sum(map(len, sentence)) for sentence in document])
        labels = np.array([1]) if layout == "labelled" else None
        writer.append(np.array(tokens, np.uint32), lengths, np.array([0]), labels)
    writer.close({}, {})
    return TokenStore.open(path)


def rows_of(store: TokenStore, name: str, **options: Any) -> dict[str, Any]:
    processor = PROCESSORS[name](store, DataConfig(data_processor=name, **options), SentinelTokenizer())
    keys = processor.plan(0)
    rows = processor.build(keys, np.zeros_like(keys))
    assert set(rows) == set(processor.provides)
    return rows


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@example(  # a word that is cut before a sentence of its own
    sizes=[[[1, 1, 1, 4, 4, 4, 4, 4], [1]], [[1], [1]]], width=24, shard=10, masking={}, full=False, seed=0
)
@given(
    sizes=SIZES, width=st.integers(24, 60), shard=SHARDS, masking=MASKINGS, full=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_words_are_hidden_whole(
    tmp_path_factory: pytest.TempPathFactory, name: str, sizes: list[list[list[int]]], width: int, shard: int,
    masking: dict[str, Any], full: bool, seed: int,
) -> None:  # fmt: skip
    documents, layout = numbered(sizes), LAYOUTS.get(name, "sentences")
    store = write_words(tmp_path_factory.mktemp("words") / "store", documents, layout, shard)
    words = [word for document in documents for sentence in document for word in sentence]
    word_of = {id: number for number, word in enumerate(words) for id in word}
    options: dict[str, Any] = {"seq_length": width, "full_sentences": full, "seed": seed, **masking}
    rows = rows_of(store, name, whole_word_masking=True, **options)
    found = []  # of each row whether each of its tokens is hidden, in the order of the text
    if "mlm_labels" in rows:
        for seen, labels in zip(rows["input_ids"], rows["mlm_labels"], strict=True):
            hidden = labels != IGNORED
            ids = np.where(hidden, labels, seen)
            found.append([(id, bool(here)) for id, here in zip(ids.tolist(), hidden, strict=True)])
    else:
        for source, target in zip(sources(rows), targets(rows), strict=True):
            ordinary = {*source, *target} & word_of.keys()
            found.append([(id, id not in source) for id in sorted(ordinary)])
    for row in found:
        for (one, one_hidden), (other, other_hidden) in pairwise(row):
            if other == one + 1 and word_of.get(one, -1) == word_of.get(other):
                assert one_hidden == other_hidden
        sizes_hidden = [word_of[id] for id, hidden in row if hidden]
        ordinary_num = sum(id in word_of for id, _ in row)
        budget = max(round((0.3 if name == "bart" else 0.15) * ordinary_num), 1)
        assert len(sizes_hidden) <= budget or len(set(sizes_hidden)) == 1
        assert sizes_hidden or not ordinary_num


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("whole_words", [False, True])
@settings(max_examples=10, deadline=None)
@given(sizes=SIZES, shard=SHARDS, masking=MASKINGS)
def test_rows_of_words_that_are_not_asked_for_or_those_of_the_vocabulary(
    tmp_path_factory: pytest.TempPathFactory, name: str, whole_words: bool, sizes: list[list[list[int]]],
    shard: int, masking: dict[str, Any],
) -> None:  # fmt: skip
    path, layout = tmp_path_factory.mktemp("same"), LAYOUTS.get(name, "sentences")
    continues = SentinelTokenizer().continues_word
    documents: list[list[Sentence]] = []
    for document in numbered(sizes):
        documents.append([])
        for sentence in document:
            ids = [id for word in sentence for id in word]
            cuts = [at for at, id in enumerate(ids) if at and not continues[id]]
            documents[-1].append([ids[low:high] for low, high in pairwise([0, *cuts, len(ids)])])
    with_words = write_words(path / "with", documents, layout, shard)
    meta = {name: value for name, value in with_words.meta.items() if name != "words"}
    without = TokenStore(with_words.path, meta, with_words.shards)
    assert with_words.has_words and not without.has_words
    options: dict[str, Any] = {"seq_length": 30, "whole_word_masking": whole_words, **masking}
    one, other = (rows_of(store, name, **options) for store in (with_words, without))
    sentences = [[id for word in sentence for id in word] for document in documents for sentence in document]
    begins_inside = any(continues[ids[0]] for ids in sentences)
    # Sentences longer than a row are cut, and bart puts the rest, too, behind others.
    begins_inside |= name == "bart" and any(len(ids) > 28 for ids in sentences)
    if not (whole_words and begins_inside):  # the vocabulary does not see where a text begins
        assert all((one[field] == other[field]).all() for field in one)


def test_what_a_user_dictionary_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "user.txt"
    for content, message in (
        ("龘靐\n龘 靐\n", "line 2: expected 'word .frequency. .tag.'.* is '龘 靐'"),
        ("龘靐 n 5\n", "line 1: expected"),
        ("龘靐 5 N\n", "line 1: expected"),
        ("", "is empty"),
    ):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(DataError, match=message):
            Segmenter(str(path))
    with pytest.raises(DataError, match="no such file"):
        Segmenter(str(tmp_path / "none.txt"))
    path.write_text("龘·靐 5\n龘靐\n", encoding="utf-8")
    Segmenter(str(path))
    assert "1 of 2 words are never found" in capsys.readouterr().err


def test_without_jieba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(ConfigError, match="pip install jieba"):
        Segmenter()


def test_when_words_are_looked_for(by_kind: dict[str, Tokenizer], dictionary: Path, tmp_path: Path) -> None:
    assert [is_chinese(by_kind[kind]) for kind in ("bert", "char", "spm", "bytes")] == [
        True,
        True,
        True,
        False,
    ]
    chinese = by_kind["bert"].files["vocab_path"]
    english = tmp_path / "vocab.txt"
    english.write_text("\n".join([*SPECIAL, *map(str, range(30)), "龘"]), encoding="utf-8")
    arguments = ["--corpus_path", "corpus.txt", "--data_processor", "mlm", "--vocab_path"]
    whole_words, user = ["--whole_word_masking"], ["--user_dict_path", str(dictionary)]
    assert not read_job([*arguments, str(chinese)]).words
    assert read_job([*arguments, str(chinese), *whole_words]).words
    assert not read_job([*arguments, str(english), *whole_words]).words
    assert read_job([*arguments, str(english), *whole_words, *user]).words
    with pytest.raises(ConfigError, match="--user_dict_path has words for --whole_word_masking"):
        read_job([*arguments, str(chinese), *user])


def test_from_corpus_to_batches(by_kind: dict[str, Tokenizer], dictionary: Path, tmp_path: Path) -> None:
    corpus(tmp_path)
    vocab_path = str(by_kind["bert"].files["vocab_path"])
    arguments = ["--corpus_path", str(tmp_path / "corpus.txt"), "--data_processor", "mlm", "--seq_length",
                 "32", "--vocab_path", vocab_path, "--dataset_path"]  # fmt: skip
    found = {}
    for name, options in (
        ("words", ["--whole_word_masking", "--user_dict_path", str(dictionary)]),
        ("plain", []),
    ):
        read_job([*arguments, str(tmp_path / name), *options]).run()
        configuration = str(ROOT / "models/bert/base_config.json")
        training = read_settings(
            ["--dataset_path", str(tmp_path / name), "--config_path", configuration, "--target", "mlm",
             "--data_processor", "mlm", "--whole_word_masking", "--batch_size", "4", "--output_model_path",
             str(tmp_path / "model")]
        )  # fmt: skip
        loader = make_loader(training, training.sources, make_engine(training), workers_num=2)
        found[name] = "\n".join(describe_data(training, loader, None))
        batch = next(loader.batches()).batch
        hidden = batch["mlm_labels"] != IGNORED
        assert hidden.any() and (batch["mlm_labels"][hidden] < 100).all()
    assert "does not know Chinese words" not in found["words"]
    assert f"{tmp_path / 'plain'} does not know Chinese words, so each token is one" in found["plain"]
