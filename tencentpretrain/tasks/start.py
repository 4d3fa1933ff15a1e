"""What a run starts from: weights, and what lies beside them, which spares the user to repeat options."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tencentpretrain.config import ModelConfig, TokenizerConfig, json_options, options_of
from tencentpretrain.config.load import Options
from tencentpretrain.description import check_against_description, read_description
from tencentpretrain.errors import ConfigError, UserError, WeightsError
from tencentpretrain.files import complete_file
from tencentpretrain.model import fields_read, initialise
from tencentpretrain.registry import load_plugins
from tencentpretrain.tasks.base import Task, TaskModel
from tencentpretrain.tokenizers import build_tokenizer, load_tokenizer
from tencentpretrain.tokenizers.base import Tokenizer
from tencentpretrain.weights import load_weights


@dataclasses.dataclass(frozen=True)
class Start:
    """Weights to start from, if any.

    Attributes:
        path: of the weights.
        description: what lies beside them; empty where nothing does.
        given: the tokenizer options of the command line.
        finetuned: whether they must be all that the task's model needs, as inference wants it.
    """

    path: Path | None
    description: Mapping[str, Any]
    given: Mapping[str, Any]
    finetuned: bool

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Names of the classes, where the weights fix them."""
        known = self.description.get("labels")
        return None if known is None or not self.finetuned else tuple(map(str, known))

    def tokenizer(self, config: TokenizerConfig) -> Tokenizer:
        """The tokenizer the options name, else the one beside the weights.

        Raises:
            ConfigError: the options contradict what lies beside the weights.
        """
        if (
            self.path is None
            or "tokenizer_path" not in self.description
            or config.vocab_path
            or config.spm_model_path
        ):
            return build_tokenizer(config)
        tokenizer = load_tokenizer(self.path)
        own = {"tokenizer": tokenizer.kind, **tokenizer.options}
        problems = [
            f"--{name} {value} is not what the tokenizer beside {self.path} has; leave it out, or name the "
            "vocabulary too."
            for name, value in self.given.items()
            if own.get(name) != value
        ]
        if problems:
            raise ConfigError(problems)
        return tokenizer

    def vocab_size(self, tokenizer: Tokenizer) -> int:
        """Rows of the word embedding: weights may have more than there are tokens."""
        return max(tokenizer.vocab_size, int(self.description.get("vocab_size", 0)))

    def check(self, config: ModelConfig, tokenizer: Tokenizer) -> None:
        """Refuse options that contradict what lies beside the weights.

        Raises:
            ConfigError: with every contradiction.
        """
        if self.path is None or not self.description:
            return
        check_against_description(config, self.description, self.path, tokenizer=tokenizer)
        pooling = self.description.get("pooling", config.pooling)
        if self.finetuned and config.pooling != pooling:
            raise ConfigError(
                f"`pooling` is {config.pooling}, but {self.path} was fine-tuned with {pooling}."
            )

    def load(self, model: TaskModel) -> list[str]:
        """Give a model its first weights: those of the file, where it has them, else random ones.

        Returns:
            Lines that say which.

        Raises:
            WeightsError: the file cannot be read or does not fit.
        """
        initialise(model)
        if self.path is None:
            return ["weights: random"]
        report = load_weights(model, self.path)
        if self.finetuned and report.missing:
            raise WeightsError(
                f"{self.path} was not fine-tuned for this task: it has no {', '.join(report.missing[:4])}; "
                "fine-tune first, and give the file that the fine-tuning program wrote."
            )
        return str(report).split("\n")


def start_from(options: Options, path: str | None, finetuned: bool = False) -> Start:
    """Add to the options what `config_path` and the description of the weights at `path` say.

    A description replaces the default configuration.
    """
    description = read_description(path) if path is not None else None
    if description is None or options.given("config_path"):
        options.add_json(options.get("config_path"), json_options())
    if description is not None:
        if not options.given("plugins"):
            load_plugins(tuple(description.get("plugins", ())))
        known = dict(description)
        if not finetuned:
            known.pop("seq_length", None)  # of another task
        options.add_layer(f"{path}.json", known)
    given = {name: options.get(name) for name in options_of(TokenizerConfig) if options.given(name)}
    return Start(None if path is None else Path(path), description or {}, given, finetuned)


def check_model(config: ModelConfig, task: type[Task], seq_length: int) -> None:
    """Refuse a model that cannot take the task's inputs, before any data is touched.

    Raises:
        ConfigError: with all that does not fit.
    """
    problems = [
        f"{reader} reads '{field}', which {task.summary} does not provide."
        for field, reader in fields_read(config)
        if not reader.startswith("target ") and field not in task.provides
    ]
    if "pos" in config.embedding and seq_length > config.max_seq_length:
        problems.append(
            f"`seq_length` ({seq_length}) must not exceed `max_seq_length` ({config.max_seq_length}), "
            "the number of position embeddings."
        )
    if problems:
        raise ConfigError(problems)


def check_writable(path: Path, option: str) -> None:
    """Fail now rather than after the work, where the file of an option cannot be written.

    Raises:
        UserError: it cannot.
    """
    if path.is_dir():
        raise UserError(f"{option} {path} is a directory; give the name of a file.")
    probe = path.with_name(f".{path.name}.probe")
    try:
        with complete_file(probe) as temporary:
            temporary.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"{option} {path}: cannot write there ({error.strerror}: {error.filename})."
        ) from None
