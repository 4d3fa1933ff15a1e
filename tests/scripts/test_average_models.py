"""scripts/average_models.py"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tencentpretrain import WeightsError, build_model, load_weights
from tencentpretrain.average import AverageConfig, average_models
from tencentpretrain.blocks import BlocksConfig, convert_into_blocks
from tencentpretrain.config import ModelConfig, TokenizerConfig
from tencentpretrain.description import described_config, description_path, make_description, read_description
from tencentpretrain.errors import ConfigError, UserError
from tencentpretrain.files import read_json, write_json
from tencentpretrain.tokenizers import build_tokenizer, load_tokenizer
from tencentpretrain.weights import publish_weights

CONFIG = ModelConfig(
    emb_size=8, hidden_size=8, feedforward_size=8, heads_num=2, layers_num=1, target=("mlm",),
    tie_weights=True,
)  # fmt: skip


def write(path: Path, seed: int, config: ModelConfig = CONFIG) -> dict[str, torch.Tensor]:
    words = path.parent / "vocab.txt"
    words.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "word"]) + "\n")
    tokenizer = build_tokenizer(TokenizerConfig(vocab_path=str(words)))
    torch.manual_seed(seed)
    model = build_model(config, tokenizer.vocab_size)
    publish_weights(model.state_dict(), path, make_description(path, config, tokenizer))
    return model.state_dict()


def average(output: Path, *paths: Path) -> str:
    return average_models(AverageConfig(tuple(map(str, paths)), str(output)))


@pytest.mark.parametrize("name", ["mean.bin", "there/mean.safetensors"])
def test_mean_and_description(tmp_path: Path, name: str) -> None:
    paths = [tmp_path / f"model.bin-{step}" for step in (10, 20, 30)]
    models = [write(path, seed) for seed, path in enumerate(paths)]
    output = tmp_path / name
    assert "the mean of 3 models" in average(output, *paths)
    description = read_description(output)
    assert description is not None and (output.parent / description["tokenizer_path"]).is_dir()
    model = build_model(described_config(output, description), 6)
    assert load_weights(model, output).missing == []
    for name, tensor in model.state_dict().items():
        expected = torch.stack([each[name].double() for each in models]).mean(0)
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-9)


def test_other_models_are_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name, 0)
    write(tmp_path / "deep", 0, ModelConfig(**{**vars(CONFIG), "layers_num": 2}))
    write(tmp_path / "wide", 0, ModelConfig(**{**vars(CONFIG), "feedforward_size": 16}))
    write(tmp_path / "relu", 0, ModelConfig(**{**vars(CONFIG), "hidden_act": "relu"}))
    output = tmp_path / "mean"
    with pytest.raises(WeightsError, match=r"not of one model: .* in one of them only"):
        average(output, tmp_path / "one", tmp_path / "deep")
    with pytest.raises(WeightsError, match=r"linear_1.weight is 8 × 8 .*, but 16 × 8 .* in .*wide"):
        average(output, tmp_path / "one", tmp_path / "two", tmp_path / "wide")
    with pytest.raises(ConfigError, match="hidden_act"):  # no shape shows it
        average(output, tmp_path / "one", tmp_path / "relu")
    described = read_json(description_path(tmp_path / "two"))
    for number, name in enumerate(("one", "two")):
        beside = description_path(tmp_path / name)
        write_json(beside, read_json(beside) | {"tgt_tokenizer_fingerprint": str(number)})
    with pytest.raises(ConfigError, match="different tokenizers"):
        average(output, tmp_path / "one", tmp_path / "two")
    write_json(description_path(tmp_path / "two"), described)
    with pytest.raises(ConfigError, match="a mean needs two"):
        average(output, tmp_path / "one")
    with pytest.raises(UserError, match="would be overwritten"):
        average(tmp_path / "two", tmp_path / "one", tmp_path / "two")
    assert not list(tmp_path.glob("mean*"))


def test_files_of_other_toolkits(tmp_path: Path) -> None:
    for number in (1.0, 3.0):
        tensors = {"embedding.word.embedding.weight": torch.full((2, 2), number).half(), "n": torch.tensor(3)}
        torch.save(tensors, tmp_path / f"{number:.0f}.bin")
    (tmp_path / "mean.bin.json").write_text("{}", encoding="utf-8")  # of other weights
    average(tmp_path / "mean.bin", tmp_path / "1.bin", tmp_path / "3.bin")
    mean = torch.load(tmp_path / "mean.bin", weights_only=True)
    assert mean["embedding.word.embedding.weight"].dtype == torch.half and int(mean["n"]) == 3
    assert mean["embedding.word.embedding.weight"].eq(2).all()
    assert not (tmp_path / "mean.bin.json").exists()
    torch.save({**tensors, "n": torch.tensor(4)}, tmp_path / "other.bin")
    with pytest.raises(WeightsError, match="n holds whole numbers that differ"):
        average(tmp_path / "mean2.bin", tmp_path / "1.bin", tmp_path / "other.bin")
    assert json.dumps(sorted(path.name for path in tmp_path.glob("*mean2*"))) == "[]"


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """Two directories of Transformers, `one` and `other`."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "d"]
    for name in ("one", "other"):
        transformers.BertForMaskedLM(config).save_pretrained(tmp_path / name)
        (tmp_path / name / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    return tmp_path


def check_carried(tokenizer: Path, source: Path) -> None:
    assert not list(tokenizer.rglob("*.safetensors"))
    ids = [load_tokenizer(path).encode("b d") for path in (tokenizer, source)]
    assert ids[0] == ids[1]


def test_directories_of_transformers(theirs: Path) -> None:
    """Their tokenizer is written beside the mean, and nothing else of them."""
    average(theirs / "mean.bin", theirs / "one", theirs / "other")
    check_carried(theirs / "mean.bin.tokenizer", theirs / "one")


def test_blocks_of_a_directory_of_transformers(theirs: Path) -> None:
    source, target = theirs / "one", theirs / "blocks"
    convert_into_blocks(BlocksConfig(input_model_path=str(source), output_model_path=str(target)))
    check_carried(theirs / "blocks.tokenizer", source)
    models = []
    for path in (source, target):
        description = read_description(path)
        assert description is not None
        models.append(build_model(described_config(path, description), 9))
        load_weights(models[-1], path)
    for (name, one), other in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other), name
