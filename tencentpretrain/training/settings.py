"""What a pre-training run was asked for: options, what lies beside weights, and the dataset, checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tencentpretrain.config import (
    DataConfig,
    DeepSpeedConfig,
    ModelConfig,
    OptimizationConfig,
    Options,
    PretrainConfig,
    RunConfig,
    TargetTokenizerConfig,
    TokenizerConfig,
    json_options,
    options_of,
)
from tencentpretrain.data.mixture import Source, check_options, open_sources
from tencentpretrain.data.store import TokenStore
from tencentpretrain.description import check_against_description, read_description
from tencentpretrain.errors import ConfigError, DataError
from tencentpretrain.files import check_not_input
from tencentpretrain.model import check_provided, length_problems
from tencentpretrain.registry import ENCODERS, PROCESSORS, load_plugins
from tencentpretrain.tokenizers import Tokenizer, build_tokenizer
from tencentpretrain.training.engines import DeepSpeedSetup, Place, choose_engine, read_deepspeed_config


@dataclasses.dataclass(frozen=True)
class Settings:
    """What was asked for, resolved and checked, and the dataset it is about.

    Attributes:
        vocab_sizes: rows of the word embeddings of both sides; pre-trained weights may have more than tokens.
        family: that the pre-trained weights were converted from, where that is known.
    """

    model: ModelConfig
    data: DataConfig
    optimization: OptimizationConfig
    run: RunConfig
    pretrain: PretrainConfig
    sources: tuple[Source, ...]
    labels_num: int | None
    vocab_sizes: tuple[int, int]
    notes: list[str]
    place: Place
    engine: str
    deepspeed: DeepSpeedSetup | None  # with that engine
    family: str | None

    @property
    def store(self) -> TokenStore:
        """The first of the datasets; all have its tokenizer."""
        return self.sources[0].store

    @property
    def batch_size(self) -> int:
        """Samples (rows, where they are packed) of one update, of all ranks."""
        return self.run.batch_size * self.pretrain.accumulation_steps * self.place.world_size

    @property
    def configs(self) -> tuple[Any, ...]:
        return self.model, self.data, self.optimization, self.run, self.pretrain


def read_settings(arguments: Sequence[str] | None = None) -> Settings:
    """Options of the command line, the JSON file, what lies beside pre-trained weights, and the dataset.

    Raises:
        UserError: with what is wrong; nothing was written.
    """
    concerns = (
        ModelConfig, DataConfig, OptimizationConfig, RunConfig, PretrainConfig, DeepSpeedConfig,
        TokenizerConfig, TargetTokenizerConfig,
    )  # fmt: skip
    options = Options("Pre-train a model on a token store.", *concerns, arguments=arguments)
    output, pretrained = options.get("output_model_path"), options.get("pretrained_model_path")
    check_not_input(Path(output), "--output_model_path", options.paths_read("output_model_path", "log_path"))
    if log := options.get("log_path"):
        check_not_input(Path(log), "--log_path", options.paths_read("log_path"))
    description = read_description(pretrained) if pretrained else None
    if description is None or options.given("config_path"):
        options.add_json(options.get("config_path"), json_options())
    if description is not None:
        load_plugins(tuple(description.get("plugins", ())))
        known = {*options_of(ModelConfig), "plugins"}
        of_model = {name: value for name, value in description.items() if name in known}
        options.add_description(pretrained, of_model)
    sources = open_sources(options.get("dataset_path"))
    if options.get("verify_dataset"):
        for source in sources:
            source.store.verify()
    store = sources[0].store
    own = _tokenizer_options("", store.tokenizer) | _tokenizer_options("tgt_", store.tgt_tokenizer)
    check_options([source.store for source in sources], options)
    options.add_layer(f"{store.path}/meta.json", store.options | own)
    model, data, optimization, run, pretrain, deepspeed, tokenizer, tgt_tokenizer = options.build(*concerns)
    _check_tokenizer(store, store.tokenizer, tokenizer, "", options)
    _check_tokenizer(store, store.tgt_tokenizer, tgt_tokenizer.as_tokenizer_config(), "tgt_", options)
    if description is not None:
        check_against_description(
            model, description, pretrained, tokenizer=store.tokenizer, tgt_tokenizer=store.tgt_tokenizer
        )
    processor = PROCESSORS[data.data_processor]
    check_provided(model, processor.provides, data.data_processor)
    target = processor.target_length, getattr(data, processor.target_length)
    problems = length_problems(model, data.seq_length, target)
    if data.packing:
        problems += packing_problems(model)
    if model.prefix_lm_loss and "lm" in model.target and not processor.second_segment:
        problems.append(
            f"`prefix_lm_loss` counts the second segment, which processor '{data.data_processor}' does not "
            "have; 'prefixlm' and 'llm_sft' do."
        )
    if problems:
        raise ConfigError(problems)
    labels_num = _labels_num([source.store for source in sources], pretrain.labels_num)
    place = _place(pretrain, deepspeed.local_rank)
    engine = choose_engine(run.engine, place.world_size, deepspeed.deepspeed)
    setup = _deepspeed_setup(deepspeed, optimization, run, pretrain, place) if engine == "deepspeed" else None
    if setup is None and (deepspeed.deepspeed_config or deepspeed.enable_zero3):
        raise ConfigError(
            f"--deepspeed_config and --enable_zero3 need --deepspeed, but the engine is {engine}."
        )
    if engine != "fsdp" and pretrain.fsdp_offload:
        raise ConfigError(f"--fsdp_offload needs --engine fsdp, but the engine is {engine}.")
    beside = description or {}
    rows = int(beside.get("vocab_size", 0)), int(beside.get("tgt_vocab_size", beside.get("vocab_size", 0)))
    tokens = store.tokenizer.vocab_size, store.tgt_tokenizer.vocab_size
    vocab_sizes = max(rows[0], tokens[0]), max(rows[1], tokens[1])
    return Settings(
        model, data, optimization, run, pretrain, sources, labels_num, vocab_sizes, options.notes, place,
        engine, setup, beside.get("family"),
    )  # fmt: skip


def _deepspeed_setup(
    deepspeed: DeepSpeedConfig,
    optimization: OptimizationConfig,
    run: RunConfig,
    pretrain: PretrainConfig,
    place: Place,
) -> DeepSpeedSetup:
    """What its configuration file says, with what our options decide."""
    batch_size = run.batch_size * pretrain.accumulation_steps * place.world_size
    decided: dict[str, tuple[Any, str]] = {
        "train_micro_batch_size_per_gpu": (run.batch_size, "--batch_size"),
        "gradient_accumulation_steps": (pretrain.accumulation_steps, "--accumulation_steps"),
        "train_batch_size": (batch_size, "--batch_size × --accumulation_steps × processes"),
        "gradient_clipping": (optimization.max_grad_norm, "--max_grad_norm"),
        "optimizer.params.lr": (optimization.learning_rate, "--learning_rate"),
        "optimizer.params.weight_decay": (optimization.weight_decay, "--weight_decay"),
        "optimizer.params.betas": ([optimization.beta1, optimization.beta2], "--beta1 --beta2"),
        "optimizer.params.eps": (optimization.adam_eps, "--adam_eps"),
    }
    if deepspeed.enable_zero3:
        decided["zero_optimization.stage"] = (3, "--enable_zero3")
    return read_deepspeed_config(Path(deepspeed.path), decided, run.precision, optimization.optimizer)


def _place(pretrain: PretrainConfig, local_rank: int | None) -> Place:
    place = Place.here()
    if local_rank is not None and (place is None or place.local_rank != local_rank):
        raise ConfigError(
            f"--local_rank is {local_rank}, but LOCAL_RANK of the environment is "
            f"{'not there' if place is None else place.local_rank}; both are for a launcher to give."
        )
    if place is None:  # the only process, or the one that will start those of this machine
        return Place(world_size=pretrain.world_size)
    if pretrain.world_size not in (1, place.world_size):
        raise ConfigError(
            f"--world_size is {pretrain.world_size}, but {place.world_size} processes were started; leave it "
            "out."
        )
    return place


def packing_problems(model: ModelConfig) -> list[str]:
    """Why rows of several samples would not be kept apart by a model; empty: they are."""
    problems = []
    if not getattr(ENCODERS[model.encoder], "keeps_documents_apart", False):
        problems.append(
            f"--packing: encoder '{model.encoder}' cannot keep the samples of a row apart; 'transformer' can."
        )
    if model.pooling != "first" and {"sp", "cls"} & set(model.target):
        problems.append(
            f"--packing needs `pooling` first, a sample's first token, but it is {model.pooling}."
        )
    return problems


def _tokenizer_options(prefix: str, tokenizer: Tokenizer) -> dict[str, Any]:
    """The dataset's own tokenizer options, so that giving its vocabulary alone gives its tokenizer."""
    names = {field.name for field in dataclasses.fields(TokenizerConfig)}
    own = {f"{prefix}{name}": value for name, value in tokenizer.options.items() if name in names}
    return {f"{prefix}tokenizer": tokenizer.kind, **own}


def _check_tokenizer(
    store: TokenStore, own: Tokenizer, config: TokenizerConfig | None, prefix: str, options: Options
) -> None:
    """Refuse options, those with `prefix`, of another tokenizer than the store's own one of that side."""
    names = options_of(TargetTokenizerConfig if prefix else TokenizerConfig)
    said = {name: options.get(name) for name in names if options.given(name)}
    paths = [] if config is None else [path for path in (config.vocab_path, config.spm_model_path) if path]
    if config is not None and paths:
        same = build_tokenizer(config).fingerprint == own.fingerprint
    else:
        known = _tokenizer_options(prefix, own)
        same = all(known.get(name) == value for name, value in said.items())
    if not same:
        given = [f"--{name} {value}" for name, value in said.items()] or paths
        directory = store.path / (f"{prefix}tokenizer" if f"{prefix}tokenizer" in store.meta else "tokenizer")
        side = " for the decoder's side" if prefix else ""
        raise DataError(
            f"{store.path} was made with another tokenizer{side} (its own: {own.kind}, {own.vocab_size} "
            f"tokens, {directory}) than the one given ({' '.join(given)}). Leave the tokenizer options out, "
            "or make the dataset again with preprocess.py."
        )


def _labels_num(stores: Sequence[TokenStore], given: int | None) -> int | None:
    store = max(stores, key=lambda store: store.labels_num)
    if given is not None and given < store.labels_num:
        raise DataError(f"--labels_num is {given}, but {store.path} has labels up to {store.labels_num - 1}.")
    return given or store.labels_num or None
