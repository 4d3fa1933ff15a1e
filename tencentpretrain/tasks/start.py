"""What a run starts from: weights, and what lies beside them, which spares the user to repeat options."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tencentpretrain.config import ModelConfig, TokenizerConfig, json_options, options_of
from tencentpretrain.config.load import Options
from tencentpretrain.description import check_against_description, read_description
from tencentpretrain.errors import ConfigError, DataError, UserError, WeightsError
from tencentpretrain.files import check_not_input, complete_file
from tencentpretrain.model import fields_read, initialise, length_problems
from tencentpretrain.registry import load_plugins
from tencentpretrain.state_dict import neighbours
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
        given: options of the command line.
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
        if config.vocab_path or config.spm_model_path:
            return build_tokenizer(config)
        if self.path is None or "tokenizer_path" not in self.description:
            try:
                return build_tokenizer(config)
            except ConfigError as error:
                other = f"None lies beside {self.path}."
                if self.path is None:
                    other = "Or give --pretrained_model_path, weights that have their vocabulary beside them."
                raise ConfigError([*error.problems, other]) from None
        tokenizer = load_tokenizer(self.path)
        own = {"tokenizer": tokenizer.kind, **tokenizer.options}
        problems = [
            f"--{name} {value} is not what the tokenizer beside {self.path} has; leave it out, or name the "
            "vocabulary too."
            for name in options_of(TokenizerConfig)
            if (value := self.given.get(name)) is not None and own.get(name) != value
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
        config_file = f"--config_path {self.given['config_path']}" if "config_path" in self.given else None
        check_against_description(
            config,
            self.description,
            self.path,
            tokenizer=tokenizer,
            origin=lambda name: f"--{name}" if name in self.given else config_file,
        )
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


def start_from(options: Options, option: str, finetuned: bool = False) -> Start:
    """Add to the options what `config_path` and the description of the weights that `option` names say.

    A description replaces the default configuration.

    Raises:
        WeightsError: there are no such weights.
    """
    path = options.get(option)
    if path is not None and not Path(path).exists():
        raise WeightsError(f"--{option} {path}: no such file or directory{neighbours(Path(path))}.")
    description = read_description(path) if path is not None else None
    if description is None or options.given("config_path"):
        options.add_json(options.get("config_path"), json_options())
    if description is not None:
        if not options.given("plugins"):
            load_plugins(tuple(description.get("plugins", ())))
        known = dict(description)
        if not finetuned:
            known.pop("seq_length", None)  # of another task
        options.add_description(f"{path}.json", known)
    names = ("config_path", *options_of(TokenizerConfig), *options_of(ModelConfig))
    given = {name: options.get(name) for name in names if options.given(name)}
    return Start(None if path is None else Path(path), description or {}, given, finetuned)


def model_for(task: type[Task], config: ModelConfig, seq_length: int) -> ModelConfig:
    """The part of the model that the task trains: without the decoder where it has no input for one.

    Raises:
        ConfigError: with all of its inputs that do not fit, before any data is touched.
    """
    if config.decoder is not None and "decoder_input_ids" not in task.provides:
        config = config.encoder_alone()
    problems = [
        f"{reader} reads '{field}', which {task.summary} does not provide."
        for field, reader in fields_read(config)
        if not reader.startswith("target ") and field not in task.provides
    ]
    problems += [*config.pooling_problems(), *length_problems(config, seq_length)]
    if problems:
        raise ConfigError(problems)
    return config


def check_paths(options: Options, output: str, data: Sequence[str], writes: bool = True) -> Path:
    """The path of a program's output, once all its paths are known to be usable.

    Args:
        output, data: options that name what is written, and tables that are read.
        writes: whether this process is the one that will write the output.

    Raises:
        UserError: the output would replace an input, cannot be written, or an input cannot be read.
    """
    path, inputs = Path(options.get(output)), options.paths_read(output)
    check_not_input(path, f"--{output}", inputs)
    for name in data:
        if (table := inputs[name]) is not None:
            check_readable(Path(table), f"--{name}")
    if writes:
        check_writable(path, f"--{output}")
    return path


def check_readable(path: Path, option: str) -> None:
    """Fail before any work, where the file of an option cannot be read.

    Raises:
        DataError: it cannot.
    """
    try:
        path.stat()
        problem = "a directory; give a file in it" if path.is_dir() else None
        if problem is None and not os.access(path, os.R_OK):
            problem = "not readable by you; its permissions must change"
    except OSError as error:
        problem = f"{error.strerror}; give the path of a file, absolute or from {Path.cwd()}"
    if problem is not None:
        raise DataError(f"{option} {path}: {problem}.")


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
