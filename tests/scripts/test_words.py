"""Neighbours of words, and the word embedding as text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from word_list import WORDS

from tencentpretrain import build_model, load_tokenizer, load_weights
from tencentpretrain.errors import DataError, UserError, WeightsError
from tencentpretrain.inspection.words import (
    WordsInContext,
    extract_embeddings,
    topn_words_dep,
    topn_words_indep,
)
from tencentpretrain.weights import described_config, read_description, save_weights


def printed(text: str) -> dict[str, list[tuple[str, float]]]:
    """Neighbours and their cosines, by what stands before them."""
    found: dict[str, list[tuple[str, float]]] = {}
    for line in text.splitlines():
        word, _, cosine = line.partition("\t")
        if line.startswith("Target word: "):
            rows = found.setdefault(line.removeprefix("Target word: "), [])
        elif cosine:
            rows.append((word, float(cosine)))
    return found


def states(weights: Path, rows: list[list[str]]) -> torch.Tensor:
    """[rows, S, D] of rows of equally many tokens."""
    description = read_description(weights)
    assert description is not None
    model = build_model(described_config(weights, description), description["vocab_size"]).eval()
    load_weights(model, weights)
    ids = load_tokenizer(weights).ids
    with torch.no_grad():
        return model.encode({"input_ids": torch.tensor([[ids[token] for token in row] for row in rows])})


def write(weights: Path, name: str, text: str) -> Path:
    path = weights.with_name(name)
    path.write_text(text, encoding="utf-8")
    return path


def test_neighbours_in_context(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = write(weights, "words.tsv", "bank\told bank money\nfish\triver bank\n")
    options = [f"--load_model_path={weights}", f"--test_path={words}", "--seq_length=24", "--precision=fp32"]
    topn_words_dep([*options, "--batch_size=3", "--topn=4"])
    text = capsys.readouterr().out
    assert "Original sentence: old bank money\nTarget word: bank\n" in text
    assert "The target word is not in the sentence.\n" in text
    rows = [["[CLS]", "old", word, "money", "[SEP]"] for word in WORDS]
    vectors = states(weights, rows)[:, 2]
    cosines = torch.cosine_similarity(vectors[WORDS.index("bank")], vectors)
    order = [row for row in cosines.argsort(descending=True).tolist() if WORDS[row] != "bank"][:4]
    found = printed(text)["bank"]
    assert [word for word, _ in found] == [WORDS[row] for row in order]
    assert np.allclose([cosine for _, cosine in found], cosines[order], atol=1e-5)


def test_a_word_of_several_tokens_is_the_mean_of_them(
    weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = write(weights, "words.tsv", "fishing\told fishing bank\n")
    known = write(weights, "known.txt", "fish 12\nwatering\nfishing\nunheard\n")
    options = [f"--load_model_path={weights}", f"--test_path={words}", f"--cand_vocab_path={known}"]
    topn_words_dep([*options, "--seq_length=24", "--precision=fp32"])
    found = dict(printed(capsys.readouterr().out)["fishing"])
    assert found.keys() == {"fish", "watering"}  # not itself, nor what the tokenizer does not know
    rows = [["[CLS]", "old", word, "##ing", "bank", "[SEP]"] for word in ("fish", "water")]
    target, other = states(weights, rows)[:, 2:4].mean(1)
    assert found["watering"] == pytest.approx(float(torch.cosine_similarity(target, other, dim=0)), abs=1e-5)
    short = states(weights, [["[CLS]", "old", "fish", "bank", "[SEP]"]])[0, 2]
    assert found["fish"] == pytest.approx(float(torch.cosine_similarity(target, short, dim=0)), abs=1e-5)


def test_rows_of_uneven_length_are_padded() -> None:
    batch = WordsInContext([[7], [8, 9]], [1, 2], [3], pad_id=0).batch(np.array([1, 0]))
    assert batch["input_ids"].tolist() == [[1, 2, 8, 9, 3], [1, 2, 7, 3, 0]]
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert batch["pooled_positions"].tolist() == [[0, 0, 1, 1, 0], [0, 0, 1, 0, 0]]


def test_long_sentences_are_cut_behind_the_word(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sentence = " ".join(["old"] * 30)
    words = write(weights, "words.tsv", f"bank\tbank {sentence}\nbank\t{sentence} bank\n")
    topn_words_dep([f"--load_model_path={weights}", f"--test_path={words}", "--seq_length=24", "--topn=2"])
    text = capsys.readouterr().out
    assert len(printed(text)["bank"]) == 2
    assert text.count("not in the sentence as far as it is read (--seq_length 24)") == 1


def test_wrong_lines_are_named(weights: Path) -> None:
    for text in ("bank\told bank\nbank old\n", "bank\told bank\n\told\n"):
        words = write(weights, "words.tsv", text)
        with pytest.raises(DataError, match="line 2: expected a word, TAB and a sentence"):
            topn_words_dep([f"--load_model_path={weights}", f"--test_path={words}", "--seq_length=24"])
    known = write(weights, "known.txt", "unheard\n")
    words = write(weights, "words.tsv", "bank\told bank\n")
    with pytest.raises(DataError, match="knows none of its words"):
        options = [f"--load_model_path={weights}", f"--test_path={words}", "--seq_length=24"]
        topn_words_dep([*options, f"--cand_vocab_path={known}"])


def test_neighbours_in_the_embedding(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = write(weights, "words.txt", "bank 3\n\nunheard\n")
    topn_words_indep([f"--load_model_path={weights}", f"--test_path={words}", "--topn=3"])
    text = capsys.readouterr().out
    table = torch.load(weights, weights_only=True)["embedding.word.embedding.weight"]
    tokens = load_tokenizer(weights).tokens
    cosines = torch.cosine_similarity(table[tokens.index("bank")], table)
    order = cosines.argsort(descending=True)[1:4]
    found = printed(text)
    assert [word for word, _ in found["bank"]] == [tokens[row] for row in order]
    assert "Target word: unheard\nThe target word is not in the vocabulary.\n" in text


def test_the_embedding_as_text(weights: Path) -> None:
    output = weights.with_name("vectors.txt")
    extract_embeddings([f"--load_model_path={weights}", f"--word_embedding_path={output}"])
    first, *lines = output.read_text(encoding="utf-8").splitlines()
    table = torch.load(weights, weights_only=True)["embedding.word.embedding.weight"]
    assert first == f"{len(table)} 16"
    assert [line.split(" ")[0] for line in lines] == load_tokenizer(weights).tokens
    read = np.array([line.split(" ")[1:] for line in lines], np.float32)
    assert np.array_equal(read, table.numpy())  # to the last bit


@pytest.mark.parametrize(
    "read", ["load_model_path", "vocab_path", "merges_path", "spm_model_path", "special_tokens_map_path"]
)
def test_vectors_never_replace_what_is_read(read: str, weights: Path) -> None:
    before = weights.read_bytes()
    options = {"load_model_path": weights.with_name("other"), read: weights, "word_embedding_path": weights}
    with pytest.raises(UserError, match=f"--word_embedding_path .* is what --{read} names too"):
        extract_embeddings([f"--{name}={path}" for name, path in options.items()])
    assert weights.read_bytes() == before


def test_a_vocabulary_that_does_not_fit(weights: Path) -> None:
    output = weights.with_name("vectors.txt")
    options = [f"--load_model_path={weights}", f"--word_embedding_path={output}"]
    longer = write(weights, "longer.txt", "\n".join(f"w{number}" for number in range(20)))
    with pytest.raises(DataError, match=r"20 tokens, but .* has vectors for 14"):
        extract_embeddings([*options, f"--vocab_path={longer}"])
    tensors = torch.load(weights, weights_only=True)
    bare = weights.with_name("bare.bin")
    save_weights(tensors, bare)
    options[0] = f"--load_model_path={bare}"
    with pytest.raises(DataError, match="--vocab_path"):
        extract_embeddings(options)
    extract_embeddings([*options, f"--vocab_path={weights.with_name('vocab.txt')}"])
    save_weights({"encoder.layer_norm.gamma": torch.ones(3)}, bare)
    with pytest.raises(WeightsError, match="no word embedding"):
        extract_embeddings(options)
