from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import toy_rows, write_table

from tencentpretrain.config import load_config
from tencentpretrain.conversion.program import convert
from tencentpretrain.description import write_description
from tencentpretrain.errors import ConfigError, DataError, UserError, WeightsError
from tencentpretrain.model import build_model
from tencentpretrain.registry import EMBEDDINGS
from tencentpretrain.tasks import finetuning
from tencentpretrain.tasks.base import Score
from tencentpretrain.tasks.classification import Classifier
from tencentpretrain.tasks.examples import TextExamples
from tencentpretrain.tasks.runner import finetune, infer
from tencentpretrain.tokenizers import Tokenizer, load_tokenizer
from tencentpretrain.training.engines import SingleEngine
from tencentpretrain.weights import read_state_dict, save_weights

Arguments = Callable[..., list[str]]


def train(arguments: list[str]) -> Path:
    """Fine-tune; the path of the weights."""
    finetune("classifier", arguments)
    return Path(next(word for word in arguments if "output_model_path" in word).partition("=")[2])


def records(model: Path, key: str) -> list[dict[str, float]]:
    lines = (model.parent / f"{model.name}.logs" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if key in record]


def predict(model: Path, table: Path, *options: str) -> list[list[str]]:
    path = model.parent / "predictions.tsv"
    infer(
        "classifier",
        [f"--load_model_path={model}", f"--test_path={table}", f"--prediction_path={path}", *options],
    )
    return [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def trained(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("trained") / "model.bin"
    options = {
        "train_path": toy / "train.tsv", "dev_path": toy / "dev.tsv", "test_path": toy / "dev.tsv",
        "vocab_path": toy / "vocab.txt", "config_path": toy / "config.json", "output_model_path": output,
        "seq_length": 24, "learning_rate": 1e-2, "epochs_num": 4, "batch_size": 16, "report_steps": 5,
        "pooling": "mean", "precision": "fp32",
    }  # fmt: skip
    return train([f"--{name}={value}" for name, value in options.items()])


def test_the_toy_task_is_learned_and_told(trained: Path) -> None:
    evaluations = records(trained, "eval_accuracy")
    assert [record["step"] for record in evaluations] == [16, 32, 48, 64]
    assert max(record["eval_accuracy"] for record in evaluations) == 1.0
    assert evaluations[-1]["eval_loss"] < 0.1
    assert records(trained, "test_accuracy")[0]["test_accuracy"] == 1.0
    training = records(trained, "loss_cls")
    assert [record["step"] for record in training] == [5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 64]
    assert training[-1]["acc_cls"] > training[0]["acc_cls"]
    assert training[-1]["tokens"] == 4 * sum(len(row[1].split()) + 2 for row in toy_rows(256, seed=0))
    assert (trained.parent / "model.bin.logs" / "curves.png").is_file()


def test_what_lies_beside_the_weights_suffices_to_infer(trained: Path, toy: Path) -> None:
    description = json.loads((trained.parent / "model.bin.json").read_text(encoding="utf-8"))
    assert description["labels"] == ["0", "1"]
    assert description["pooling"] == "mean" and description["seq_length"] == 24
    assert load_tokenizer(trained).encode("good") == [5]
    rows = toy_rows(200, seed=5)
    predictions = predict(
        trained, write_table(trained.parent / "in.tsv", ["text_a"], [[row[1]] for row in rows])
    )
    assert predictions[0] == ["label"]
    assert np.mean([row[0] == label for row, (label, _) in zip(predictions[1:], rows, strict=True)]) > 0.97


def test_from_a_directory_of_transformers_and_back(
    arguments: Arguments, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """XLM-R's tensors are RoBERTa's too: which of them it was is known to the end."""
    import transformers

    words = (toy / "vocab.txt").read_text(encoding="utf-8").split()
    words[:2] = words[1::-1]  # [PAD] is 1, as these models have it
    torch.manual_seed(0)
    theirs = transformers.XLMRobertaForMaskedLM(
        transformers.XLMRobertaConfig(
            vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=34, type_vocab_size=1, initializer_range=0.3,
        )
    )  # fmt: skip
    theirs.save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    model = train(
        arguments(
            pretrained_model_path=tmp_path / "theirs", vocab_path=None, config_path=None, pooling=None,
            epochs_num=4,
        )
    )  # fmt: skip
    assert max(record["eval_accuracy"] for record in records(model, "eval_accuracy")) > 0.9
    description = json.loads((tmp_path / "model.bin.json").read_text(encoding="utf-8"))
    assert description["family"] == "xlm-roberta"

    paths = ["--input_model_path", str(model), "--output_model_path", str(tmp_path / "back")]
    monkeypatch.setattr("sys.argv", ["convert", "--to", "huggingface", *paths])
    convert()
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "back").eval()
    assert type(loaded) is transformers.XLMRobertaForSequenceClassification
    rows = toy_rows(20, seed=5)
    predicted = predict(model, write_table(tmp_path / "in.tsv", ["text_a"], [[row[1]] for row in rows]))
    tokenizer = load_tokenizer(model)
    for (label,), (_, text) in zip(predicted[1:], rows, strict=True):
        ids = [tokenizer.require("cls"), *tokenizer.encode(text), tokenizer.require("sep")]
        logits = loaded(torch.tensor([ids])).logits[0]
        assert loaded.config.id2label[int(logits.argmax())] == label


def test_predictions_are_the_models_whatever_the_batches(trained: Path, toy: Path) -> None:
    options = ("--output_logits", "--output_prob")
    one = predict(trained, toy / "dev.tsv", *options, "--batch_size=1")
    many = predict(trained, toy / "dev.tsv", *options, "--batch_size=50")
    assert one[0] == many[0] == ["label", "logits", "prob"]
    tokenizer = load_tokenizer(trained)
    model = Classifier(load_config(toy / "config.json", pooling="mean"), tokenizer.vocab_size, 2, 0.5).eval()
    model.load_state_dict(torch.load(trained, weights_only=True))
    texts = [line.split("\t")[1] for line in (toy / "dev.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    logits = model(TextExamples(tokenizer, texts, None, 24).batch(np.arange(len(texts)))).outputs["logits"]
    for rows in (one[1:], many[1:]):
        assert [row[0] for row in rows] == [str(label) for label in logits.argmax(1).tolist()]
        for column, expected in ((1, logits), (2, logits.softmax(1))):
            found = torch.tensor([[float(number) for number in row[column].split(" ")] for row in rows])
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_pairs_are_told_apart_by_both_texts(arguments: Arguments, tmp_path: Path) -> None:
    header = ["text_b", "label", "text_a"]
    for name, seed, count in (("train", 2, 400), ("dev", 3, 100)):
        rows = [[second, label, first] for label, first, second in toy_rows(count, seed, pairs=True)]
        write_table(tmp_path / f"{name}.tsv", header, rows)
    model = train(arguments(train_path=tmp_path / "train.tsv", dev_path=tmp_path / "dev.tsv", epochs_num=3))
    assert max(record["eval_accuracy"] for record in records(model, "eval_accuracy")) > 0.95


def test_same_seed_same_weights_other_seed_other_weights(arguments: Arguments, tmp_path: Path) -> None:
    one, two, other = (
        read_state_dict(
            train(arguments(output_model_path=tmp_path / name, seed=seed, epochs_num=1, batch_size=64))
        )
        for name, seed in (("one.bin", 3), ("two.bin", 3), ("other.bin", 4))
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["output_layer_2.weight"], other["output_layer_2.weight"])


def test_the_first_of_the_best_epochs_is_kept_and_tested(
    arguments: Arguments, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.5, 0.9, 0.7, 0.9, 0.123])  # four epochs, then the test set
    seen = []

    def evaluate(engine: SingleEngine, *rest: object) -> tuple[Score, float]:
        seen.append({name: weight.clone() for name, weight in engine.model.state_dict().items()})
        value = next(scores)
        return Score(value, {"accuracy": value}, ""), 0.0

    monkeypatch.setattr(finetuning, "evaluate", evaluate)
    monkeypatch.setattr("tencentpretrain.tasks.runner.evaluate", evaluate)
    kept = read_state_dict(train(arguments(test_path=toy / "dev.tsv")))
    assert all(torch.equal(kept[name], seen[1][name]) for name in kept)
    assert not torch.equal(seen[0]["output_layer_2.weight"], seen[1]["output_layer_2.weight"])
    assert all(torch.equal(kept[name], seen[4][name]) for name in kept)


def test_adversarial_training_changes_what_is_learned(arguments: Arguments, tmp_path: Path) -> None:
    attacks = {
        "plain": {},
        "fgm": {"use_adv": True, "fgm_epsilon": 0.5},
        "pgd": {"use_adv": True, "adv_type": "pgd", "pgd_alpha": 0.2, "pgd_epsilon": 0.5},
    }
    weights = {}
    for kind, options in attacks.items():
        short = {"output_model_path": tmp_path / kind, "epochs_num": 1, "batch_size": 64}
        weights[kind] = read_state_dict(train(arguments(**short, **options)))[
            "encoder.transformer.0.layer_norm_1.beta"
        ]
    assert not torch.equal(weights["plain"], weights["fgm"])
    assert not torch.equal(weights["fgm"], weights["pgd"])
    assert all(weight.isfinite().all() for weight in weights.values())


def test_soft_targets_alone_teach_the_classes(arguments: Arguments, tmp_path: Path) -> None:
    rows = [["0" if index else "1", text, "-2 2" if label == "1" else "2 -2"]
            for index, (label, text) in enumerate(toy_rows(256, seed=0))]  # fmt: skip
    path = write_table(tmp_path / "soft.tsv", ["label", "text_a", "logits"], rows)
    model = train(arguments(train_path=path, soft_targets=True, soft_alpha=1.0))
    assert max(record["eval_accuracy"] for record in records(model, "eval_accuracy")) > 0.95


def test_starts_from_pretrained_weights_and_what_lies_beside_them(
    arguments: Arguments, toy: Path, tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(toy / "config.json", pooling="last")
    pretrained = tmp_path / "pretrained.bin"
    source = build_model(config, tokenizer.vocab_size)
    save_weights(source.state_dict(), pretrained)
    write_description(pretrained, config, tokenizer)
    start = {"pretrained_model_path": pretrained, "config_path": None, "vocab_path": None, "pooling": None}
    model = train(arguments(**start, learning_rate=1e-12, epochs_num=1))
    weights = read_state_dict(model)
    name = "embedding.word.embedding.weight"
    torch.testing.assert_close(weights[name], source.state_dict()[name], atol=1e-8, rtol=0)
    assert json.loads((tmp_path / "model.bin.json").read_text(encoding="utf-8"))["pooling"] == "last"
    told = capsys.readouterr().out
    assert "left at random: 4: output_layer_1 (2), output_layer_2 (2)" in told and "ignored: " in told
    for changes, said in (
        ({"hidden_size": 32, "emb_size": 32}, "`hidden_size` is 32, but the weights"),
        ({"heads_num": 4}, "leave --heads_num out"),
        ({"do_lower_case": "false"}, "--do_lower_case False is not what the tokenizer beside"),
        ({"tokenizer": "char"}, "--tokenizer char is not what the tokenizer beside"),
    ):
        with pytest.raises(ConfigError, match=said):
            finetune("classifier", arguments(**start, **changes))
    (tmp_path / "other.txt").write_text(
        (toy / "vocab.txt").read_text(encoding="utf-8") + "more\n", encoding="utf-8"
    )
    with pytest.raises(ConfigError, match="made with another tokenizer"):
        finetune("classifier", arguments(pretrained_model_path=pretrained, vocab_path=tmp_path / "other.txt"))


def test_of_an_encoder_decoder_the_encoder_is_trained(
    arguments: Arguments, toy: Path, tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value = json.loads((toy / "config.json").read_text(encoding="utf-8"))
    value |= {"tgt_embedding": ["word", "pos"], "decoder": "transformer", "target": ["lm"]}
    value |= {"tie_weights": True, "share_embedding": True, "decoder_layers_num": 2}
    config, start = tmp_path / "t5.json", tmp_path / "start.bin"
    config.write_text(json.dumps(value), encoding="utf-8")
    both = load_config(config)
    model = build_model(both, tokenizer.vocab_size)
    save_weights(model.state_dict(), start)
    write_description(start, both, tokenizer)
    trained = train(
        arguments(pretrained_model_path=start, config_path=None, vocab_path=None, learning_rate=1e-12)
    )
    assert "decoder.transformer_decoder (" in capsys.readouterr().out
    ours = read_state_dict(trained)
    assert not [name for name in ours if "decoder" in name or name.startswith("tgt_embedding")]
    for name, tensor in model.state_dict().items():
        if name.startswith(("embedding", "encoder")):
            torch.testing.assert_close(ours[name], tensor, atol=1e-8, rtol=0)
    assert predict(trained, toy / "dev.tsv") == predict(trained, toy / "dev.tsv", f"--config_path={config}")


def test_a_causal_model_does_not_pool_its_first_position(arguments: Arguments) -> None:
    causal = {"mask": "causal", "target": "lm"}
    with pytest.raises(ConfigError, match="the first position sees nothing of the text that follows"):
        finetune("classifier", arguments(**causal, pooling="first"))


def test_inference_refuses_what_contradicts_the_weights(trained: Path, toy: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps(json.loads((toy / "config.json").read_text()) | {"pooling": "first"}))
    for option, said in (
        ("--labels_num=3", "`labels_num` is 3"),
        ("--heads_num=4", "`heads_num` is 4"),
        ("--pooling=max", "`pooling` is max, but .* was fine-tuned with mean"),
        (f"--config_path={wrong}", "`pooling` is first"),
    ):
        with pytest.raises(ConfigError, match=said):
            predict(trained, toy / "dev.tsv", option)
    published = (
        "--labels_num=2",
        f"--vocab_path={toy / 'vocab.txt'}",
        f"--config_path={toy / 'config.json'}",
    )
    assert len(predict(trained, toy / "dev.tsv", *published)) == 65


def test_a_published_weights_file_is_used_with_the_published_options(
    trained: Path, toy: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare.bin"
    torch.save(torch.load(trained, weights_only=True), bare)
    given = (f"--vocab_path={toy / 'vocab.txt'}", f"--config_path={toy / 'config.json'}", "--pooling=mean")
    expected = predict(trained, toy / "dev.tsv", "--output_logits")
    assert (
        predict(bare, toy / "dev.tsv", *given, "--seq_length=24", "--labels_num=2", "--output_logits")
        == expected
    )
    with pytest.raises(ConfigError, match="--labels_num"):
        predict(bare, toy / "dev.tsv", *given, "--seq_length=24")
    with pytest.raises(WeightsError, match=r"labels: the file was fine-tuned for 2 classes, this task has 4"):
        predict(bare, toy / "dev.tsv", *given, "--seq_length=24", "--labels_num=4")


def test_weights_that_were_not_fine_tuned_predict_nothing(
    toy: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    config = load_config(toy / "config.json")
    save_weights(build_model(config, tokenizer.vocab_size).state_dict(), tmp_path / "pretrained.bin")
    write_description(tmp_path / "pretrained.bin", config, tokenizer)
    with pytest.raises(WeightsError, match="was not fine-tuned for this task: it has no output_layer_1"):
        predict(tmp_path / "pretrained.bin", toy / "dev.tsv", "--labels_num=2", "--seq_length=24")
    assert not (tmp_path / "predictions.tsv").exists()


def test_adversarial_training_needs_the_word_embedding(
    arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EMBEDDINGS._entries, "own", EMBEDDINGS["word"])
    with pytest.raises(ConfigError, match="which this model does not have"):
        finetune("classifier", arguments(embedding="own", use_adv=True))


@pytest.mark.parametrize(("changes", "said"), [
    ({"seq_length": 33}, r"`seq_length` \(33\) must not exceed `max_seq_length` \(32\)"),
    ({"embedding": "pos"}, "`embedding` says where a token is, but not which"),
    ({"vocab_path": None}, r"vocab_path(.|\n)*--pretrained_model_path"),
    ({"epochs_nun": 3}, "did you mean 'epochs_num'"),
])  # fmt: skip
def test_wrong_options_are_refused(
    arguments: Arguments, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        finetune("classifier", arguments(**changes))
    assert list(tmp_path.iterdir()) == []


def test_an_output_never_replaces_an_input(arguments: Arguments, toy: Path, tmp_path: Path) -> None:
    rows = (toy / "train.tsv").read_bytes()
    (tmp_path / "rows.tsv").write_bytes(rows)
    (tmp_path / "link.tsv").symlink_to("rows.tsv")
    same = tmp_path / "directory" / ".." / "rows.tsv"
    (tmp_path / "directory").mkdir()
    for option in (
        "train_path", "dev_path", "test_path", "pretrained_model_path", "vocab_path", "merges_path",
        "spm_model_path", "special_tokens_map_path",
    ):  # fmt: skip
        for output in ("output_model_path", "log_path"):
            with pytest.raises(UserError, match=f"--{output} .* is what --{option} names too"):
                finetune("classifier", arguments(**{option: tmp_path / "rows.tsv", output: same}))
    with pytest.raises(UserError, match=r"--log_path .* is what --output_model_path names too"):
        finetune("classifier", arguments(log_path=tmp_path / "model.bin"))
    config = (toy / "config.json").read_bytes()
    for output in ("output_model_path", "log_path"):
        with pytest.raises(UserError, match=f"--{output} .* is what --config_path names too"):
            finetune("classifier", arguments(**{output: toy / "config.json"}))
    assert (toy / "config.json").read_bytes() == config
    options = ["--load_model_path", str(toy / "vocab.txt"), "--test_path", str(tmp_path / "link.tsv")]
    with pytest.raises(UserError, match=r"--prediction_path .* is what --test_path names too"):
        infer("classifier", [*options, "--prediction_path", str(same)])
    assert (tmp_path / "rows.tsv").read_bytes() == rows and len(list(tmp_path.iterdir())) == 3


def test_paths_that_cannot_be_read_are_named_with_their_option(
    arguments: Arguments, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for option in ("train_path", "dev_path", "test_path"):
        with pytest.raises(DataError, match=rf"^--{option} .*nope\.tsv: No such file"):
            finetune("classifier", arguments(**{option: tmp_path / "nope.tsv"}))
    with pytest.raises(DataError, match=r"^--train_path .*: a directory"):
        finetune("classifier", arguments(train_path=tmp_path))
    with pytest.raises(WeightsError, match=r"^--pretrained_model_path nope\.bin: no such file or directory"):
        finetune("classifier", arguments(pretrained_model_path="nope.bin", vocab_path=None))
    options = ["--load_model_path=nope.bin", f"--test_path={toy / 'dev.tsv'}", "--prediction_path=p"]
    with pytest.raises(WeightsError, match=r"^--load_model_path nope\.bin: no such file or directory"):
        infer("classifier", options)
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may read everything
    with pytest.raises(DataError, match=r"^--train_path .*: not readable by you"):
        finetune("classifier", arguments())


def test_wrong_data_is_refused_before_training(arguments: Arguments, toy: Path, tmp_path: Path) -> None:
    bad = write_table(tmp_path / "bad.tsv", ["label", "text_a"], [["0", "w1"], ["2", "w2"]])
    for split in ("dev_path", "test_path"):
        with pytest.raises(DataError, match=r"bad\.tsv, line 3: label 2 is out of range"):
            finetune("classifier", arguments(**{split: bad}))
    assert [path.name for path in tmp_path.iterdir()] == ["bad.tsv"]


def test_an_output_that_cannot_be_written_is_refused_before_training(
    arguments: Arguments, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="is a directory"):
        finetune("classifier", arguments(output_model_path=tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--output_model_path .*: cannot write there"):
        finetune("classifier", arguments(output_model_path=tmp_path / "file" / "model.bin"))


def test_a_diverging_run_ends_with_advice(arguments: Arguments, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"of 10 updates in a row was not finite, up to step \d+ .*lower --learning_rate"
    ):
        finetune("classifier", arguments(learning_rate=1e30, max_grad_norm=0, warmup=0))


def test_an_interrupted_run_keeps_the_best_and_the_latest_weights(
    arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = SingleEngine.step
    seen: list[int] = []

    def interrupted(self: SingleEngine, learning_rate: float) -> None:
        step(self, learning_rate)
        seen.append(1)
        if len(seen) == 20:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(SingleEngine, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        finetune("classifier", arguments())
    assert len(seen) == 20
    best, latest = read_state_dict(tmp_path / "model.bin"), read_state_dict(tmp_path / "model.bin-20")
    assert not torch.equal(best["output_layer_2.weight"], latest["output_layer_2.weight"])
    assert (tmp_path / "model.bin-20.json").is_file()


def test_engines_that_shard_are_for_pretraining(arguments: Arguments) -> None:
    with pytest.raises(
        ConfigError, match="--engine fsdp is for pre-training; fine-tuning has single and ddp"
    ):
        finetune("classifier", arguments(engine="fsdp"))
