"""Every command that README.md and docs/ print runs, from the directory and with the file names they say."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from marian_files import SENTENCES, TRANSLATIONS, marian_tokenizer

from tencentpretrain.conversion import sentence_transformers

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MEASUREMENTS = {"results.md", "performance.md"}  # their commands take minutes, and need the data they name
TRIED = [page for page in PAGES if page.name not in MEASUREMENTS]
WORDS = [f"word{number}" for number in range(60)]
LAUNCHERS = {"torchrun ": "torch.distributed.run", "deepspeed ": "deepspeed.launcher.runner"}
# Put behind each command, so that it takes seconds: the last of two equal options counts.
SHORT = {
    "pretrain.py": "--total_steps 2 --save_checkpoint_steps 1 --batch_size 4 --layers_num 1 --hidden_size 16 "
    "--emb_size 16 --feedforward_size 16 --heads_num 2 --seq_length 16",
    "finetune/run_classifier.py": "--epochs_num 1",
    "scripts/average_models.py": "--model_list_path models/mini.bin-1 models/mini.bin-2",
    "scripts/build_vocab.py": "--vocab_size 300 --min_count 1",
    "scripts/extract_features.py": "--whitening_size 8",
}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


def commands(page: Path) -> list[str]:
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").split("\n")
    return [line.split(" #")[0].strip() for line in lines if line.startswith(("python ", *LAUNCHERS))]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as the documentation assumes it: a corpus, a vocabulary, data, a Hugging Face model."""
    place = tmp_path_factory.mktemp("documentation")
    for name in ("preprocess.py", "pretrain.py", "finetune", "inference", "scripts"):
        (place / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "models", place / "models")
    vocabulary = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n"
    sentences = [" ".join(WORDS[start : start + 8]) for start in range(50)]
    corpus = "\n".join(line if number % 4 else f"\n{line}" for number, line in enumerate(sentences)) + "\n"
    rows = [f"{number % 2}\t{sentence}" for number, sentence in enumerate(sentences)]
    (place / "corpora").mkdir()
    for path, text in {
        "vocab.txt": vocabulary, "models/vocab.txt": vocabulary,
        "corpus.txt": corpus, "corpora/corpus.txt": corpus,
        **{f"{name}.tsv": "\n".join(["label\ttext_a", *rows]) + "\n" for name in ("train", "dev", "test")},
        "sentences.txt": "\n".join(sentences) + "\n", "words_in_context.tsv": f"word2\t{sentences[0]}\n",
        "pairs.tsv": "\n".join(map("\t".join, zip(SENTENCES, TRANSLATIONS, strict=True))) + "\n",
        "words.txt": "word2\n", "candidates.txt": "word7\nword8\n",
    }.items():  # fmt: skip
        (place / path).write_text(text, encoding="utf-8")
    (place / "my_modules.py").write_text(blocks(ROOT / "docs/extending.md", "python")[0], encoding="utf-8")

    import transformers

    config = transformers.BertConfig(
        vocab_size=len(vocabulary.split()), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.BertForPreTraining(config).save_pretrained(place / "bert-base-chinese")
    (place / "bert-base-chinese" / "vocab.txt").write_text(vocabulary, encoding="utf-8")
    shutil.copytree(place / "bert-base-chinese", place / "all-MiniLM-L6-v2")
    sentence_transformers.write(
        place / "all-MiniLM-L6-v2", 16, {"pooling": "mean", "normalize_features": True}
    )
    qwen = transformers.Qwen2Config(
        vocab_size=len(vocabulary.split()), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=16,
    )  # fmt: skip
    transformers.Qwen2ForCausalLM(qwen).save_pretrained(place / "Qwen2-7B")
    marian_tokenizer(place / "opus-mt-en-zh")
    tokens = json.loads((place / "opus-mt-en-zh" / "vocab.json").read_text(encoding="utf-8"))
    marian = transformers.MarianConfig(
        vocab_size=len(tokens), d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16,
        decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2, scale_embedding=True,
        pad_token_id=2, eos_token_id=0, decoder_start_token_id=2, forced_eos_token_id=0,
    )  # fmt: skip
    transformers.MarianMTModel(marian).save_pretrained(place / "opus-mt-en-zh")
    return place


def run(command: str, place: Path) -> None:
    words = shlex.split(command)
    extra = [word for program, options in SHORT.items() if program in words for word in options.split()]
    launcher = ["-m", LAUNCHERS[f"{words[0]} "]] if words[0] != "python" else []
    result = subprocess.run(
        [sys.executable, *launcher, *words[1:], *extra],
        cwd=place,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"


@pytest.mark.slow
@pytest.mark.parametrize("page", TRIED, ids=lambda page: page.name)
def test_commands_run(page: Path, place: Path) -> None:
    # What a page needs and an earlier page makes.
    if (
        page.name in ("docs/pretraining.md", "pretraining.md", "extending.md")
        and not (place / "dataset").exists()
    ):
        run(commands(ROOT / "docs/data.md")[0], place)
    if page.name in ("finetuning.md", "weights.md"):
        shutil.rmtree(place / "dataset", ignore_errors=True)
        run(commands(ROOT / "docs/data.md")[0], place)
        for name in ("mini.bin", "bert.bin"):
            if not (place / "models" / name).exists():
                run(f"python pretrain.py --dataset_path dataset --output_model_path models/{name}", place)
    for command in commands(page):
        run(command, place)


@pytest.mark.slow
def test_the_python_example_runs(place: Path) -> None:
    if not (place / "models/bert_mini.bin").exists():
        run(commands(ROOT / "docs/data.md")[0], place)
        run("python pretrain.py --dataset_path dataset --output_model_path models/bert_mini.bin", place)
    (place / "example.py").write_text(blocks(ROOT / "docs/extending.md", "python")[1], encoding="utf-8")
    run("python example.py", place)


@pytest.mark.slow
def test_the_ranking_example_runs(place: Path) -> None:
    run(commands(ROOT / "docs/features.md")[0], place)
    (place / "ranking.py").write_text(blocks(ROOT / "docs/features.md", "python")[0], encoding="utf-8")
    run("python ranking.py", place)


def test_the_json_example_is_a_configuration(tmp_path: Path) -> None:
    from tencentpretrain import load_config

    (example,) = blocks(ROOT / "docs/configuration.md", "json")
    (tmp_path / "example.json").write_text(example, encoding="utf-8")
    assert load_config(tmp_path / "example.json").layers_num == json.loads(example)["layers_num"]


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
