"""Every objective from a corpus to weights, with a model it fits: preprocess.py, then pretrain.py."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from programs import run_main

from tencentpretrain import build_model, load_config, load_tokenizer, load_weights
from tencentpretrain.data.store import TokenStore
from tencentpretrain.errors import ConfigError, DataError, UserError

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [f"w{number}" for number in range(30)]
OTHER_WORDS = [f"v{number}" for number in range(50)]
SENTENCES = [
    " ".join(WORDS[(start * 7 + number) % 30] for number in range(3 + start % 6)) for start in range(48)
]
TRANSLATIONS = [sentence.replace("w", "v") for sentence in SENTENCES]
CORPORA = {
    "sentences": "\n".join(line if number % 4 else f"\n{line}" for number, line in enumerate(SENTENCES)),
    "documents": "\n".join(SENTENCES),
    "labelled": "\n".join(f"{number % 3}\t{line}" for number, line in enumerate(SENTENCES)),
    "pairs": "\n".join(map("\t".join, zip(SENTENCES, TRANSLATIONS, strict=True))),
    "json": "\n".join(json.dumps({"text": sentence}) for sentence in SENTENCES),
    "instructions": "\n".join(
        json.dumps({"instruction": sentence, "output": sentence[::-1]}) for sentence in SENTENCES
    ),
}
SIZES = {
    "emb_size": 8, "hidden_size": 8, "feedforward_size": 16, "heads_num": 2, "layers_num": 1,
    "max_seq_length": 32, "embedding": ["word", "pos"],
}  # fmt: skip
SEGMENTS = {"embedding": ["word", "pos", "seg"]}
CAUSAL = {"mask": "causal", "target": ["lm"]}
DECODER = {"decoder": "transformer", "tgt_embedding": ["word", "pos"], "target": ["lm"]}
TARGET_VOCABULARY = ["--tgt_vocab_path", "tgt_vocab.txt", "--tgt_seq_length", "12"]
OBJECTIVES: dict[str, tuple[str, str, dict[str, Any], list[str]]] = {
    "bert": ("bert", "sentences", SEGMENTS | {"target": ["mlm", "sp"]}, []),
    "albert": ("albert", "sentences", SEGMENTS | {"target": ["mlm", "sp"], "parameter_sharing": True}, []),
    "mlm": ("mlm", "documents", {"target": ["mlm"]}, ["--full_sentences"]),
    "lm": ("lm", "documents", CAUSAL, []),
    "bilm": ("bilm", "documents", {"encoder": "bilstm", "embedding": ["word"], "target": ["bilm"]}, []),
    "t5": ("t5", "documents", DECODER | {"share_embedding": True}, []),
    "bart": ("bart", "sentences", DECODER | {"share_embedding": True, "tie_weights": True}, []),
    "gsg": ("gsg", "sentences", DECODER, ["--sentence_selection_strategy", "principal"]),
    "mt": ("mt", "pairs", DECODER, ["--tgt_seq_length", "12"]),
    "mt of two vocabularies": ("mt", "pairs", DECODER | {"tie_weights": True}, TARGET_VOCABULARY),
    "prefixlm": ("prefixlm", "pairs", SEGMENTS | {"mask": "causal_with_prefix", "target": ["lm"]}, []),
    "cls": ("cls", "labelled", {"target": ["cls"]}, []),
    "cls_mlm": ("cls_mlm", "labelled", {"target": ["cls", "mlm"]}, []),
    "llm_pretrain": ("llm_pretrain", "json", CAUSAL, []),
    "llm_sft": ("llm_sft", "instructions", CAUSAL, []),
}  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    sentinels = [f"<extra_id_{number}>" for number in range(5)]
    for name, text in CORPORA.items():
        (tmp_path / f"{name}.txt").write_text(f"{text}\n", encoding="utf-8")
    for name, tokens in {
        "vocab.txt": [*SPECIAL, *WORDS, *sentinels], "tgt_vocab.txt": [*SPECIAL, *OTHER_WORDS],
        "one_sentinel.txt": [*SPECIAL, *WORDS, *sentinels[:1]], "no_mask.txt": [*SPECIAL[:4], *WORDS],
    }.items():  # fmt: skip
        (tmp_path / name).write_text("\n".join(tokens) + "\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def preprocess(monkeypatch: pytest.MonkeyPatch, name: str, corpus: str, *options: str) -> None:
    paths = ["--corpus_path", f"{corpus}.txt", "--dataset_path", "dataset"]
    options = (*paths, "--vocab_path", "vocab.txt", "--seq_length", "16", *options)
    run_main("preprocess.py", monkeypatch, *options, "--data_processor", name)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_from_a_corpus_to_weights(objective: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, corpus, config, options = OBJECTIVES[objective]
    preprocess(monkeypatch, name, corpus, *options)
    (place / "config.json").write_text(json.dumps(SIZES | config), encoding="utf-8")
    run_main(
        "pretrain.py", monkeypatch, "--dataset_path", "dataset", "--config_path", "config.json",
        "--output_model_path", "model.bin", "--total_steps", "3", "--report_steps", "1", "--batch_size", "6",
        "--save_checkpoint_steps", "3", "--data_processor", name,
    )  # fmt: skip
    lines = Path("model.bin.logs/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
    assert all(0 < json.loads(line)["loss"] < math.inf for line in lines)
    # What lies beside the weights is enough to load them.
    description = json.loads(Path("model.bin.json").read_text(encoding="utf-8"))
    store = TokenStore.open("dataset")
    assert description["vocab_size"] == store.tokenizer.vocab_size == 40
    assert description.get("tgt_vocab_size") == (55 if objective == "mt of two vocabularies" else None)
    sizes = {key: description.get(key) for key in ("vocab_size", "labels_num", "tgt_vocab_size")}
    model = build_model(load_config("model.bin.json"), **sizes)
    report = load_weights(model, "model.bin")
    assert not report.missing and not report.unexpected
    for side, tokenizer in (("src", store.tokenizer), ("tgt", store.tgt_tokenizer)):
        assert load_tokenizer("model.bin", side).fingerprint == tokenizer.fingerprint


def test_the_decoders_tokenizer_must_be_the_datasets_and_the_weights(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "config.json").write_text(json.dumps(SIZES | DECODER), encoding="utf-8")

    def pretrain(output: str, *options: str) -> None:
        run_main(
            "pretrain.py", monkeypatch, "--dataset_path", "dataset", "--config_path", "config.json",
            "--output_model_path", output, "--total_steps", "1", "--batch_size", "6",
            "--data_processor", "mt", *options,
        )  # fmt: skip

    def refused(kind: type[UserError], *options: str) -> str:
        with pytest.raises(kind) as caught:
            pretrain("refused.bin", *options)
        assert not list(place.glob("*refused.bin*"))
        return str(caught.value)

    preprocess(monkeypatch, "mt", "pairs", *TARGET_VOCABULARY, "--tgt_do_lower_case", "false")
    told = refused(DataError, "--tgt_vocab_path", "vocab.txt")
    own = "another tokenizer for the decoder's side (its own: bert, 55 tokens, dataset/tgt_tokenizer)"
    assert f"{own} than the one given (--tgt_vocab_path vocab.txt)" in told
    assert "(--tgt_tokenizer char)" in refused(DataError, "--tgt_tokenizer", "char")
    assert "(--tgt_do_lower_case True)" in refused(DataError, "--tgt_do_lower_case", "true")
    assert "dataset/tokenizer" in refused(DataError, "--vocab_path", "tgt_vocab.txt")
    pretrain("model.bin", "--vocab_path", "vocab.txt", "--tgt_vocab_path", "tgt_vocab.txt")
    pretrain("continued.bin", "--pretrained_model_path", "model.bin", "--tgt_tokenizer", "bert")

    Path("other_vocab.txt").write_text("\n".join([*SPECIAL, *OTHER_WORDS[::-1]]) + "\n", encoding="utf-8")
    preprocess(monkeypatch, "mt", "pairs", *TARGET_VOCABULARY, "--tgt_vocab_path", "other_vocab.txt")
    told = refused(ConfigError, "--pretrained_model_path", "model.bin")
    assert told == (
        "the weights model.bin were made with another tokenizer for the decoder's side than the one given; "
        "use the one that model.bin.json names."
    )
    preprocess(monkeypatch, "mt", "pairs", *TARGET_VOCABULARY[2:])
    assert "dataset/tokenizer" in refused(DataError, "--tgt_vocab_path", "tgt_vocab.txt")
    pretrain("one.bin", "--tgt_vocab_path", "vocab.txt")
    assert not Path("one.bin.tgt_tokenizer").exists()


def message(kind: type[UserError], *arguments: Any) -> str:
    with pytest.raises(kind) as caught:
        preprocess(*arguments)
    assert not Path("dataset").exists()
    return str(caught.value)


def test_what_cannot_become_examples_is_refused_before_the_work(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use = ["--vocab_path"]
    assert "'<extra_id_0>'" in message(DataError, monkeypatch, "t5", "documents", *use, "tgt_vocab.txt")
    assert "one sentinel token" in message(
        DataError, monkeypatch, "t5", "documents", *use, "one_sentinel.txt"
    )
    assert "no mask token" in message(DataError, monkeypatch, "bart", "sentences", *use, "no_mask.txt")
    short = message(ConfigError, monkeypatch, "albert", "sentences", "--seq_length", "4")
    assert short == "`seq_length` must be at least 5 for data processor 'albert', but is 4."
    for name in ("prefixlm", "lm"):
        told = message(ConfigError, monkeypatch, name, "pairs", *TARGET_VOCABULARY[:2])
        assert "one tokenizer; leave the --tgt_ options out" in told


def test_lines_that_are_no_pairs(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("wrong.txt").write_text("w1 w2\nw1\tw2\tw3\nw1\t \nw1\tw2\n", encoding="utf-8")
    preprocess(monkeypatch, "mt", "wrong")
    told = capsys.readouterr().out
    for line in ("1: expected source TAB target, but there are 0 TABs", "2: expected source TAB target, but "
                 "there are 2 TABs", "3: one of the two texts is empty"):  # fmt: skip
        assert f"line {line}" in told
    assert TokenStore.open("dataset").documents_num == 1


def test_lines_that_are_no_instructions(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ['{"instruction": "w1"}', '{"output": "w1"}', "w1", "[1]", '{"instruction": 1, "output": "w1"}',
             '{"instruction": "w1", "input": "w2", "output": "w3"}']  # fmt: skip
    Path("wrong.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    preprocess(monkeypatch, "llm_sft", "wrong")
    told = capsys.readouterr().out
    lacking = "expected a JSON object with a text under"
    for line in (
        f'1: {lacking} "output"',
        "3: not JSON",
        "4: expected a JSON object, but is list instead",
        f'5: {lacking} "instruction"',
    ):
        assert f"line {line}" in told
    assert TokenStore.open("dataset").documents_num == 2  # an answer may have no instruction, as published
    with pytest.raises(DataError, match="nothing in this corpus can be used") as message_of_all:
        run_main("preprocess.py", monkeypatch, "--corpus_path", "documents.txt", "--dataset_path", "other",
            "--vocab_path", "vocab.txt", "--data_processor", "llm_pretrain")  # fmt: skip
    assert "line 1: not JSON" in str(message_of_all.value)


def test_a_dataset_of_two_tokenizers_has_no_common_rows(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preprocess(monkeypatch, "mt", "pairs", *TARGET_VOCABULARY)
    (place / "config.json").write_text(json.dumps(SIZES | CAUSAL), encoding="utf-8")
    with pytest.raises(DataError, match="tokenizers of their own"):
        run_main(
            "pretrain.py", monkeypatch, "--dataset_path", "dataset", "--config_path", "config.json",
            "--output_model_path", "model.bin", "--data_processor", "prefixlm", "--total_steps", "1",
        )  # fmt: skip
    assert not Path("model.bin").exists()
