"""Translation models with both their tokenizers: from a directory of Transformers to training, and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from marian_files import SENTENCES, TRANSLATIONS, marian_tokenizer
from programs import run_main

from tencentpretrain import build_model, load_config, load_tokenizer, load_weights
from tencentpretrain.config import TokenizerConfig
from tencentpretrain.data.store import TokenStore
from tencentpretrain.errors import ConfigError, DataError
from tencentpretrain.generation import greedy
from tencentpretrain.tokenizers import build_tokenizer
from tencentpretrain.weights import described_config, read_description, read_state_dict, write_description

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS = [*SENTENCES, ">>fr<< The fox", "unknown 狐 ß", *TRANSLATIONS, ""]


def marian_directory(directory: Path, separate: bool = False, padding: int = 0) -> Any:
    """A tiny model with its tokenizer; returns the model, whose embeddings have `padding` rows more."""
    marian_tokenizer(directory, separate)
    ids = json.loads((directory / "vocab.json").read_text(encoding="utf-8"))
    target = ids
    if separate:
        target = json.loads((directory / "target_vocab.json").read_text(encoding="utf-8"))
        assert target["<pad>"] != ids["<pad>"] < len(target)
    torch.manual_seed(0)
    config = transformers.MarianConfig(
        vocab_size=len(ids) + padding, d_model=16, encoder_layers=1, decoder_layers=1,
        decoder_vocab_size=len(target) + padding,
        share_encoder_decoder_embeddings=not separate, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=64, scale_embedding=True,
        pad_token_id=ids["<pad>"], eos_token_id=0, decoder_start_token_id=target["<pad>"],
        forced_eos_token_id=0,
    )  # fmt: skip
    model = transformers.MarianMTModel(config).eval()
    model.save_pretrained(directory)
    return model


def ids_of(directory: Path) -> tuple[Any, Any]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    assert type(tokenizer).__name__ == "MarianTokenizer"
    return tokenizer(TEXTS)["input_ids"], tokenizer(text_target=TEXTS)["input_ids"]


@pytest.mark.parametrize("separate", [False, True])
def test_there_and_back(run_convert: Callable[..., str], separate: bool, tmp_path: Path) -> None:
    theirs, ours, back = tmp_path / "theirs", tmp_path / "ours.bin", tmp_path / "back"
    state = marian_directory(theirs, separate, padding=3).state_dict()
    said = run_convert("tencentpretrain", theirs, ours, "--verify")
    assert "configuration and tokenizer" in said
    source, target = load_tokenizer(ours), load_tokenizer(ours, side="tgt")
    for tokenizer, rows in zip((source, target), ids_of(theirs), strict=True):
        assert [[*tokenizer.encode(text), tokenizer.sep_id] for text in TEXTS] == rows

    said = run_convert("huggingface", ours, back, "--verify")
    assert "back: marian, " in said and "tokenizer" not in said
    assert ids_of(back) == ids_of(theirs)
    names = ["source.spm", "target.spm", "vocab.json", *["target_vocab.json"] * separate]
    for name in names:
        assert (back / name).read_bytes() == (theirs / name).read_bytes(), name
    assert (back / "target_vocab.json").is_file() == separate
    loaded, info = transformers.MarianMTModel.from_pretrained(back, output_loading_info=True)
    assert not any(info.values()) and all(
        torch.equal(loaded.state_dict()[name], state[name]) for name in state
    )
    names = ["pad_token_id", "eos_token_id", "forced_eos_token_id", "decoder_start_token_id"]
    for file in ("config.json", "generation_config.json"):
        before, after = (json.loads((path / file).read_text(encoding="utf-8")) for path in (theirs, back))
        assert [after[name] for name in names] == [before[name] for name in names], file
    run_convert("huggingface", ours, back)  # which replaces what it wrote
    said = run_convert("tencentpretrain", back, tmp_path / "again.bin")
    assert load_tokenizer(tmp_path / "again.bin", side="tgt").fingerprint == target.fingerprint


def test_a_tokenizer_for_both_sides(run_convert: Callable[..., str], tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours.bin"
    marian_directory(theirs)
    (theirs / "target.spm").write_bytes((theirs / "source.spm").read_bytes())
    run_convert("tencentpretrain", theirs, ours)
    run_convert("huggingface", ours, tmp_path / "back")
    assert ids_of(tmp_path / "back") == ids_of(theirs)


def test_saved_by_transformers(run_convert: Callable[..., str], tmp_path: Path) -> None:
    """Which says the ids of special tokens as well, those of the source only."""
    theirs, saved = tmp_path / "theirs", tmp_path / "saved"
    model = marian_directory(theirs, separate=True)
    transformers.AutoTokenizer.from_pretrained(theirs).save_pretrained(saved)
    model.save_pretrained(saved)
    settings_path = saved / "tokenizer_config.json"
    settings = json.loads(settings_path.read_text(encoding="utf-8"))
    ids = json.loads((saved / "vocab.json").read_text(encoding="utf-8"))
    added = {ids[token]: {"content": token, "special": True} for token in ("</s>", "<unk>", "<pad>")}
    settings_path.write_text(json.dumps(settings | {"added_tokens_decoder": added}), encoding="utf-8")
    assert "configuration and tokenizer" in run_convert("tencentpretrain", saved, tmp_path / "ours.bin")
    for side in ("src", "tgt"):
        loaded, kept = (load_tokenizer(path, side) for path in (saved, tmp_path / "ours.bin"))  # type: ignore[arg-type]
        assert loaded.tokens == kept.tokens == load_tokenizer(theirs, side).tokens  # type: ignore[arg-type]
    added[ids["<pad>"]]["content"] = "<foxy>"
    settings_path.write_text(json.dumps(settings | {"added_tokens_decoder": added}), encoding="utf-8")
    for side in ("src", "tgt"):
        with pytest.raises(DataError, match=r"are read from a tokenizer\.json only"):
            load_tokenizer(saved, side)  # type: ignore[arg-type]


@pytest.mark.parametrize("separate", [False, True])
def test_pieces_given_for_the_source(run_convert: Callable[..., str], separate: bool, tmp_path: Path) -> None:
    """The decoder has that of the description; where that names none, one is for both if it can be."""
    theirs, ours, back = tmp_path / "theirs", tmp_path / "ours.bin", tmp_path / "back"
    marian_directory(theirs, separate)
    run_convert("tencentpretrain", theirs, ours)
    given = ["--tokenizer", "marian", "--spm_model_path", str(theirs / "source.spm")]
    given += ["--vocab_path", str(theirs / "vocab.json")]
    assert "tokenizer" not in run_convert("huggingface", ours, back, *given)
    assert ids_of(back) == ids_of(theirs)
    assert (back / "target.spm").read_bytes() == (theirs / "target.spm").read_bytes()

    description = json.loads((tmp_path / "ours.bin.json").read_text(encoding="utf-8"))
    del description["tgt_tokenizer_path"]
    (tmp_path / "ours.bin.json").write_text(json.dumps(description), encoding="utf-8")
    for options in (given, []):
        said = run_convert("huggingface", ours, back, *options)
        if separate:
            assert "no tokenizer is written: one is for the encoder's 56 tokens only, the decoder" in said
            assert not list(back.glob("*.spm")) and not (back / "tokenizer_config.json").exists()
        else:
            assert "one tokenizer is written for both sides" in said
            assert (back / "target.spm").read_bytes() == (theirs / "source.spm").read_bytes()
        config = json.loads((back / "config.json").read_text(encoding="utf-8"))
        before = json.loads((theirs / "config.json").read_text(encoding="utf-8"))
        assert config["decoder_start_token_id"] == before["decoder_start_token_id"]


def test_an_incomplete_tokenizer_is_told(run_convert: Callable[..., str], tmp_path: Path) -> None:
    marian_directory(tmp_path / "theirs")
    (tmp_path / "theirs" / "target.spm").unlink()
    said = run_convert("tencentpretrain", tmp_path / "theirs", tmp_path / "ours.bin")
    assert said.count("target.spm is missing") == 1
    said = run_convert("huggingface", tmp_path / "ours.bin", tmp_path / "back")
    assert "no tokenizer is written: none lies beside the weights" in said
    assert not list((tmp_path / "back").glob("*.spm"))


def test_a_second_tokenizer_that_theirs_has_not_is_told(
    run_convert: Callable[..., str], tmp_path: Path
) -> None:
    marian_directory(tmp_path / "theirs", separate=True)
    run_convert("tencentpretrain", tmp_path / "theirs", tmp_path / "ours.bin")
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL, "fox"]) + "\n", encoding="utf-8")
    tokenizer = build_tokenizer(TokenizerConfig(vocab_path=str(tmp_path / "vocab.txt")))
    tensors, description = read_state_dict(tmp_path / "ours.bin"), read_description(tmp_path / "ours.bin")
    config = described_config(tmp_path / "ours.bin", description or {})
    sizes = {"vocab_size": len(tensors["embedding.word.embedding.weight"])}
    sizes["tgt_vocab_size"] = len(tensors["tgt_embedding.word.embedding.weight"])
    for source, message in (
        (tokenizer, "the tokenizer of the decoder's side is not written: a BertTokenizer is one for both"),
        (load_tokenizer(tmp_path / "theirs"), "none of theirs for marian is like 'marian' with 'bert'"),
    ):
        write_description(tmp_path / "ours.bin", config, source, tgt_tokenizer=tokenizer, **sizes)
        assert message in run_convert("huggingface", tmp_path / "ours.bin", tmp_path / "back")
        assert not list((tmp_path / "back").glob("*.spm"))


def run(program: str, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    run_main(program, monkeypatch, *arguments)


def preprocess(monkeypatch: pytest.MonkeyPatch, separate: bool) -> None:
    Path("corpus.tsv").write_text(
        "".join(f"{source}\t{target}\n" for source, target in zip(SENTENCES, TRANSLATIONS, strict=True)),
        encoding="utf-8",
    )
    run(
        "preprocess.py", monkeypatch, corpus_path="corpus.tsv", dataset_path="dataset", data_processor="mt",
        seq_length=64, tgt_seq_length=48, tokenizer="marian", spm_model_path="theirs/source.spm",
        vocab_path="theirs/vocab.json", tgt_tokenizer="marian", tgt_spm_model_path="theirs/target.spm",
        tgt_vocab_path=f"theirs/{'target_vocab' if separate else 'vocab'}.json",
    )  # fmt: skip


@pytest.mark.parametrize(("start", "separate"), [("theirs", False), ("ours.bin", True)])
def test_training_goes_on_and_translates(
    run_convert: Callable[..., str],
    start: str,
    separate: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the directory itself, and from converted weights: the corpus is learnt by heart."""
    monkeypatch.chdir(tmp_path)
    marian_directory(Path("theirs"), separate, padding=1)
    if start == "ours.bin":
        run_convert("tencentpretrain", Path("theirs"), Path(start))
    preprocess(monkeypatch, separate)
    run(
        "pretrain.py", monkeypatch, dataset_path="dataset", pretrained_model_path=start, data_processor="mt",
        output_model_path="trained.bin", total_steps=150, batch_size=4, learning_rate=2e-2, warmup=0.1,
        dropout=0.0, report_steps=50, save_checkpoint_steps=150,
    )  # fmt: skip
    source, target = load_tokenizer("trained.bin"), load_tokenizer("trained.bin", side="tgt")
    description = json.loads(Path("trained.bin.json").read_text(encoding="utf-8"))
    sizes = description["vocab_size"], description["tgt_vocab_size"]
    assert sizes == (source.vocab_size + 1, target.vocab_size + 1)
    model = build_model(load_config("trained.bin.json"), sizes[0], tgt_vocab_size=sizes[1])
    assert not load_weights(model, "trained.bin").missing

    # What Transformers makes of it, which begins as its own models do, is the translation.
    run_convert("huggingface", Path("trained.bin"), Path("back"))
    theirs = transformers.MarianMTModel.from_pretrained("back").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained("back")
    for sentence, translation in zip(SENTENCES, TRANSLATIONS, strict=True):
        batch = tokenizer(sentence, text_target=translation, return_tensors="pt")
        generated = theirs.generate(batch["input_ids"], max_new_tokens=48, num_beams=1)[0, 1:].tolist()
        assert generated == batch["labels"][0].tolist()
        ids = torch.tensor([[*source.encode(sentence), source.sep_id]])
        inputs = {"input_ids": ids, "segment_ids": torch.ones_like(ids)}
        ours = greedy(model, inputs, 48, eos_id=target.sep_id, start_id=target.pad_id)[0].tolist()
        assert ours == generated
        assert target.decode(ours) == tokenizer.decode(generated)


def test_another_tokenizer_is_refused(
    run_convert: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    marian_directory(Path("theirs"), separate=True)
    preprocess(monkeypatch, separate=True)
    assert TokenStore.open("dataset").tgt_tokenizer.kind == "marian"
    marian_directory(Path("others"))
    for start in ("others", "others.bin"):
        if start == "others.bin":
            run_convert("tencentpretrain", Path("others"), Path(start))
        with pytest.raises(ConfigError, match="made with another tokenizer") as caught:
            run(
                "pretrain.py", monkeypatch, dataset_path="dataset", pretrained_model_path=start,
                data_processor="mt", output_model_path="trained.bin", total_steps=1,
            )  # fmt: skip
        assert len(caught.value.problems) == 2
