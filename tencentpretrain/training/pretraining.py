"""How a pre-training run is put together from its options."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

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
    as_json,
    json_options,
    options_of,
)
from tencentpretrain.data.loader import LoadedBatch, Loader
from tencentpretrain.data.mixture import MixtureProcessor, Source, check_options, open_sources
from tencentpretrain.data.store import TokenStore
from tencentpretrain.data.words import is_chinese
from tencentpretrain.description import check_against_description, make_description, read_description
from tencentpretrain.errors import ConfigError, DataError, UserError
from tencentpretrain.files import check_not_input
from tencentpretrain.model import Model, build_model, check_provided, length_problems
from tencentpretrain.registry import ENCODERS, PROCESSORS, load_plugins
from tencentpretrain.tokenizers import Tokenizer, build_tokenizer
from tencentpretrain.training.average import drop_average
from tencentpretrain.training.checkpoint import Checkpoints, State
from tencentpretrain.training.engines import (
    DDPEngine,
    DeepSpeedEngine,
    DeepSpeedSetup,
    Engine,
    FSDPEngine,
    Place,
    SingleEngine,
    choose_engine,
    read_deepspeed_config,
)
from tencentpretrain.training.engines.base import DTYPES
from tencentpretrain.training.estimate import (
    Cost,
    measure_cost,
    parameters_num,
    parts_of,
    state_bytes,
    tokens_num,
)
from tencentpretrain.training.memory import (
    Memory,
    free_memory,
    full_batch,
    largest_batch,
    measure_memory,
    program_memory,
)
from tencentpretrain.training.optimizers import make_optimizer
from tencentpretrain.training.profiling import Profiling
from tencentpretrain.training.report import Report
from tencentpretrain.training.schedules import make_schedule
from tencentpretrain.training.trainer import Plan, Trainer
from tencentpretrain.weights import load_weights

log = logging.getLogger("tencentpretrain")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What was asked for, resolved and checked, and the dataset it is about.

    Attributes:
        vocab_sizes: rows of the word embeddings of both sides; pre-trained weights may have more than tokens.
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
    check_not_input(Path(output), "--output_model_path", {"pretrained_model_path": pretrained})
    description = read_description(pretrained) if pretrained else None
    if description is None or options.given("config_path"):
        options.add_json(options.get("config_path"), json_options())
    if description is not None:
        load_plugins(tuple(description.get("plugins", ())))
        known = {*options_of(ModelConfig), "plugins"}
        options.add_layer(pretrained, {name: value for name, value in description.items() if name in known})
    sources = open_sources(options.get("dataset_path"))
    for source in sources:
        source.store.verify(quick=not options.get("verify_dataset"))
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
    beside = description or {}
    rows = int(beside.get("vocab_size", 0)), int(beside.get("tgt_vocab_size", beside.get("vocab_size", 0)))
    tokens = store.tokenizer.vocab_size, store.tgt_tokenizer.vocab_size
    vocab_sizes = max(rows[0], tokens[0]), max(rows[1], tokens[1])
    return Settings(
        model, data, optimization, run, pretrain, sources, labels_num, vocab_sizes, options.notes, place,
        engine, setup,
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


def fresh_model(settings: Settings, place: Callable[[Model], None] | None = None) -> Model:
    """The model that fits the dataset's tokenizers and labels; `place` as in `build_model`."""
    vocab_size, tgt_vocab_size = settings.vocab_sizes
    return build_model(settings.model, vocab_size, settings.labels_num, tgt_vocab_size, place)


def make_model(settings: Settings, engine: Engine) -> Model:
    """The model with its initial weights, which are a function of the seed, placed as the engine wants it."""
    torch.manual_seed(settings.data.seed)
    with engine.building():
        model = fresh_model(settings, engine.place)
    if settings.pretrain.deep_init:
        deep_init(model)
    if settings.pretrain.activation_checkpointing:
        checkpoint_activations(model, settings.pretrain.checkpointed_layers)
    return model


def checkpoint_activations(model: Model, layers_num: int) -> None:
    """Let every module that can recompute its activations in the backward pass do so, so many layers at
    once.
    """
    able: list[Any] = [module for module in model.modules() if hasattr(module, "activation_checkpointing")]
    if not able:
        raise ConfigError("--activation_checkpointing: no module of this model can recompute.")
    for module in able:
        module.activation_checkpointing, module.checkpointed_layers = True, layers_num


def deep_init(model: Model) -> None:
    """Scale what is added to the residual stream by 1/√n, of n additions (Radford et al. 2019, §2.3): two in
    a layer of an encoder, three in one of a decoder.
    """
    stacks = [(model.encoder, 2 * model.config.layers_num)]
    if model.decoder is not None:
        stacks.append((model.decoder, 3 * model.config.decoder_depth))
    scaled = False
    with torch.no_grad():
        for stack, additions in stacks:
            for name, parameter in stack.named_parameters():
                if name.endswith(("final_linear.weight", "linear_2.weight")):
                    parameter.div_(math.sqrt(additions))
                    scaled = True
    if not scaled:
        raise ConfigError("--deep_init scales the output layers of a transformer, but the model has none.")


def make_loader(settings: Settings, sources: Sequence[Source], engine: Engine, workers_num: int) -> Loader:
    kind = PROCESSORS[settings.data.data_processor]
    processors = [kind(source.store, settings.data, source.store.tokenizer) for source in sources]
    weights = [source.weight for source in sources]
    return Loader(
        processors[0] if len(processors) == 1 else MixtureProcessor(processors, weights),
        settings.run.batch_size,
        settings.data.seed,
        workers_num,
        targets=settings.model.target,
        rank=engine.rank,
        world_size=engine.world_size,
        pin_memory=engine.device.type != "cpu",
        prefix_lm_loss=settings.model.prefix_lm_loss,
    )


def validation_source(settings: Settings) -> list[Source]:
    path = settings.pretrain.eval_dataset_path
    if path is None:
        return []
    store = TokenStore.open(path)
    store.verify(quick=not settings.pretrain.verify_dataset)
    sides = ((each.tokenizer, each.tgt_tokenizer) for each in (store, settings.store))
    one, other = ([tokenizer.fingerprint for tokenizer in side] for side in sides)
    if one != other:
        raise DataError(
            f"--eval_dataset_path {path} was made with another tokenizer than {settings.store.path}; make it "
            "again with the same one."
        )
    if settings.labels_num is not None and store.labels_num > settings.labels_num:
        raise DataError(f"--eval_dataset_path {path} has labels up to {store.labels_num - 1}, the model has "
                        f"{settings.labels_num} classes.")  # fmt: skip
    return [Source(store, 1.0)]


def make_engine(settings: Settings) -> Engine:
    run, pretrain = settings.run, settings.pretrain
    if settings.deepspeed is not None:
        return DeepSpeedEngine(settings.place, settings.deepspeed, run.compile, pretrain.backend)
    if settings.engine == "fsdp":
        return FSDPEngine(
            settings.place, run.precision, run.compile, pretrain.backend, offload=pretrain.fsdp_offload
        )
    if settings.engine == "ddp":
        return DDPEngine(settings.place, run.precision, run.compile, pretrain.backend)
    return SingleEngine(run.precision, run.compile, pretrain.gpu_ranks)


def make_checkpoints(settings: Settings, precision: str) -> Checkpoints:
    """Training states; a run goes on from one only with the same model, data and optimizer."""
    shards = json.dumps([source.store.meta["shards"] for source in settings.sources], sort_keys=True)
    changeable = as_json(settings.optimization) | {
        "total_steps": settings.pretrain.total_steps,
        "precision": precision,
        "batch_size": settings.run.batch_size,
        "accumulation_steps": settings.pretrain.accumulation_steps,
        "world_size": settings.place.world_size,
        "engine": settings.engine if settings.deepspeed is None else settings.deepspeed.title,
    }
    del changeable["optimizer"]
    fixed = as_json(settings.model, settings.data) | {
        "dataset_path": f"contents {hashlib.blake2b(shards.encode(), digest_size=6).hexdigest()}",
        "dataset_weights": [source.weight for source in settings.sources],
        "labels_num": settings.labels_num,
        "batch_size · accumulation_steps · world_size": settings.batch_size,
        "optimizer": settings.optimization.optimizer,
    }
    del changeable["layerwise_lr_decay"]
    if settings.optimization.layerwise_lr_decay < 1:  # it divides the weights into other groups
        fixed["layerwise_lr_decay"] = settings.optimization.layerwise_lr_decay

    store = settings.store
    tgt_tokenizer = None if store.tgt_tokenizer is store.tokenizer else store.tgt_tokenizer

    def describe(path: Path) -> dict[str, Any]:
        return make_description(
            path,
            settings.model,
            store.tokenizer,
            plugins=settings.run.plugins,
            labels_num=settings.labels_num,
            vocab_size=settings.vocab_sizes[0],
            tgt_tokenizer=tgt_tokenizer,
        )

    output = Path(settings.pretrain.output_model_path)
    options = json.loads(json.dumps(fixed | changeable))  # as they will be read back
    return Checkpoints(output, options, describe, settings.pretrain.keep_checkpoints, changeable)


def make_trainer(settings: Settings) -> Trainer:
    """Everything that trains, in the state it goes on from; what refuses comes before what writes."""
    engine = make_engine(settings)
    engine.start()
    if engine.rank > 0:
        log.setLevel(logging.ERROR)  # one rank tells what all do
    for line in [*settings.notes, *engine.decisions()]:
        log.info(line)
    checkpoints = make_checkpoints(settings, engine.precision)
    with engine.together():
        if engine.rank == 0:
            checkpoints.recover()
    with engine.together():
        trainer = _make_trainer(settings, engine, checkpoints)
    with engine.together():
        if engine.agree(trainer.step) > trainer.step:
            raise UserError(
                f"process {engine.rank} finds no training state that another one finds; --output_model_path "
                f"{checkpoints.output} must be on a file system that all machines share."
            )
    return trainer


def _make_trainer(settings: Settings, engine: Engine, checkpoints: Checkpoints) -> Trainer:
    pretrain = settings.pretrain
    state = checkpoints.find(pretrain.resume)
    if state is not None and state.step > pretrain.total_steps:
        raise ConfigError(
            f"--total_steps is {pretrain.total_steps}, but {state.path} is of step {state.step}."
        )
    if state is not None and (why := engine.refusal(state.engine, state.world_size)):
        raise ConfigError(f"{state.path}: {why}")
    held_out = validation_source(settings)
    loader = make_loader(settings, settings.sources, engine, pretrain.workers_num)
    validation = make_loader(settings, held_out, engine, pretrain.workers_num) if held_out else None
    data_lines = describe_data(settings, loader, validation)
    model = make_model(settings, engine)
    log.info(f"model: {describe_model(settings, model)}")
    if pretrain.pretrained_model_path and state is None:
        for line in str(load_weights(model, pretrain.pretrained_model_path)).splitlines():
            log.info(line)
    engine.prepare(model, partial(make_optimizer, config=settings.optimization))
    for line in data_lines:
        log.info(line)
    flops = flops_per_token(settings, engine) if engine.peak_flops else None
    plan = Plan(
        pretrain.total_steps, pretrain.accumulation_steps, settings.run.report_steps,
        pretrain.save_checkpoint_steps, pretrain.eval_steps, settings.optimization.max_grad_norm,
        settings.run.max_skipped_steps, settings.data.seed, pretrain.async_checkpoint, flops,
        pretrain.early_stop,
    )  # fmt: skip
    log_dir = Path(settings.run.log_dir or f"{pretrain.output_model_path}.logs")
    if engine.rank == 0:
        checkpoints.prepare()
    first_step = state.step if state else 0
    report = Report(log_dir if engine.rank == 0 else None, pretrain.total_steps, first_step)
    schedule = make_schedule(settings.optimization, pretrain.total_steps)
    trainer = Trainer(engine, loader, validation, schedule, checkpoints, report, plan)
    if state is not None:
        trainer.restore(state.path, checkpoints.load(state, publish=engine.rank == 0))
        if not settings.optimization.ema_decay:
            drop_average(engine.optimizer)
    log.info(f"resume: {_resume_line(pretrain.resume, state)}")
    if pretrain.profile and engine.rank == 0:
        Profiling(trainer, log_dir)
    return trainer


def _resume_line(resume: str, state: State | None) -> str:
    if state is not None:
        return f"continuing from step {state.step}, {state.path}"
    why = "--resume never" if resume == "never" else "there is no earlier training state"
    return f"starting at step 0 ({why})"


def describe_model(settings: Settings, model: Model) -> str:
    config = settings.model
    parts = [
        "+".join(config.embedding),
        f"{config.encoder} ({config.layers_num} layers of {config.hidden_size})",
        "+".join(config.target),
    ]
    if config.decoder is not None:
        parts.insert(
            2, f"{'+'.join(config.tgt_embedding)} → {config.decoder} ({config.decoder_depth} layers)"
        )
    return f"{' → '.join(parts)}, {parameters_num(model):,} parameters"


def describe_data(settings: Settings, loader: Loader, validation: Loader | None) -> list[str]:
    samples, rows = loader.samples_num(), loader.rows_num()
    steps = settings.pretrain.total_steps
    batch = settings.batch_size
    lines = [
        f"data: {store.path}, {store.tokens_num:,} tokens in {store.documents_num:,} documents"
        for store, _ in settings.sources
    ]
    if isinstance(loader.processor, MixtureProcessor):
        epochs = loader.processor.epochs(steps * batch * samples / rows)
        for number, (source, own) in enumerate(zip(settings.sources, epochs, strict=True)):
            lines[number] += f"; probability {source.weight:.3g}, {own:.2f} epochs"
    lines[-1] += (
        f", {samples:,} {settings.data.data_processor} samples of up to {settings.data.seq_length} tokens"
        f"{f', in about {rows:,} rows' if settings.data.packing else ''}; "
        f"{steps:,} steps of {batch} {'rows' if settings.data.packing else 'samples'} are "
        f"{steps * batch / rows:.2f} epochs"
    )
    if settings.data.whole_word_masking and PROCESSORS[settings.data.data_processor].masks_words:
        unknown = [str(store.path) for store, _ in settings.sources if not store.has_words]
        if unknown and is_chinese(settings.store.tokenizer):
            lines.append(
                f"--whole_word_masking: {', '.join(unknown)} does not know Chinese words, so each token is "
                "one; make it with preprocess.py --whole_word_masking."
            )
    if validation is not None:
        path = settings.pretrain.eval_dataset_path
        lines.append(f"validation: {path}, {validation.samples_num():,} samples")
    return lines


def cost_of_first_batch(settings: Settings, engine: Engine) -> tuple[Cost, LoadedBatch]:
    loader = make_loader(settings, settings.sources, engine, workers_num=0)
    with contextlib.closing(loader.batches()) as batches:
        loaded = next(batches)
    return measure_cost(lambda: fresh_model(settings), loaded.batch), loaded


def flops_per_token(settings: Settings, engine: Engine) -> float:
    cost, loaded = cost_of_first_batch(settings, engine)
    return cost.flops / tokens_num(loaded.batch)


def dry_run(settings: Settings) -> str:
    """What would be trained, and what it would cost; nothing is written, no other process is met."""
    pretrain, engine = settings.pretrain, make_engine(settings)
    with torch.device("meta"):
        model = fresh_model(settings)
    loader = make_loader(settings, settings.sources, engine, workers_num=0)
    held_out = validation_source(settings)
    validation = make_loader(settings, held_out, engine, workers_num=0) if held_out else None
    cost, loaded = cost_of_first_batch(settings, engine)
    total = parameters_num(model)
    states = state_bytes(total, settings.optimization.optimizer)
    state = make_checkpoints(settings, engine.precision).find(pretrain.resume)
    options = as_json(*settings.configs).items()
    batches = pretrain.accumulation_steps * settings.place.world_size
    lines = [
        *settings.notes, *engine.decisions(), f"model: {describe_model(settings, model)}", "modules:",
        *(f"  {name:24s} {parameters_num(module):>14,d}" for name, module in parts_of(model)),
        *describe_data(settings, loader, validation), f"resume: {_resume_line(pretrain.resume, state)}",
        f"step: {batches} × {settings.run.batch_size} samples, about "
        f"{loaded.tokens * batches:,} tokens without padding, {cost.flops * batches / 1e9:,.1f} GFLOP",
        *describe_memory(settings, engine, loaded),
        f"disk: {(states - 4 * total) / 1e9:.2f} GB a training state, {pretrain.keep_checkpoints} are kept",
        "options:", *(f"  {name}: {json.dumps(value, ensure_ascii=False)}" for name, value in options),
    ]  # fmt: skip
    return "\n".join(lines)


def describe_memory(settings: Settings, engine: Engine, loaded: LoadedBatch) -> list[str]:
    """What each process needs, and whether its device has it."""
    pretrain, rows = settings.pretrain, settings.run.batch_size
    target = PROCESSORS[settings.data.data_processor].target_length
    tgt_length = getattr(settings.data, target) if settings.model.decoder is not None else None

    def build() -> Model:
        model = fresh_model(settings)
        if pretrain.activation_checkpointing:
            checkpoint_activations(model, pretrain.checkpointed_layers)
        return model

    def measure(rows: int) -> Memory:
        memory = measure_memory(
            build,
            partial(make_optimizer, config=settings.optimization),
            full_batch(loaded.batch, rows, settings.data.seq_length, tgt_length),
            engine.device,
            DTYPES.get(engine.precision),
            accumulation=pretrain.accumulation_steps > 1,
            gradients_stay=settings.place.world_size > 1,
        )
        return memory.shared(settings.place.world_size) if engine.sharded else memory

    memory, room, program = measure(rows), free_memory(engine.device), 0
    if engine.device.type == "cpu":  # the processes of this machine share it, and the program itself counts
        program, room = program_memory(), room // len(pretrain.local_ranks)
    largest = largest_batch(measure, rows, memory, room)
    title = f"{engine.device} has {room / 1e9:.2f} GB free for each process"
    if largest >= rows:
        fits = f"fits: {title}, enough for --batch_size {largest}"
    elif largest:
        fits = f"does not fit: {title}, enough for --batch_size {largest}"
    else:
        fits = f"does not fit: {title}, not enough for one row; --activation_checkpointing needs less"
    parts = ", ".join(
        f"{name} {size / 1e9:.2f}"
        for name, size in (
            ("weights", memory.weights), ("gradients", memory.gradients), ("optimizer", memory.optimizer),
            ("activations and what operations need", memory.activations), ("the program", program),
        )
        if size
    )  # fmt: skip
    return [f"memory: about {(memory.peak + program) / 1e9:.2f} GB in a process: {parts}", fits]
