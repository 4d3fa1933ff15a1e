"""How a pre-training run is put together from its settings."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tencentpretrain.config import PretrainConfig, as_json
from tencentpretrain.data.loader import LoadedBatch, Loader
from tencentpretrain.data.mixture import MixtureProcessor, Source
from tencentpretrain.data.store import TokenStore
from tencentpretrain.data.words import is_chinese
from tencentpretrain.description import make_description
from tencentpretrain.errors import ConfigError, DataError
from tencentpretrain.layers.recomputation import Recomputation
from tencentpretrain.model import Model, build_model
from tencentpretrain.registry import PROCESSORS
from tencentpretrain.training.checkpoint import Checkpoints, State
from tencentpretrain.training.engines import DDPEngine, DeepSpeedEngine, Engine, FSDPEngine, SingleEngine
from tencentpretrain.training.estimate import Cost, measure_cost, parameters_num, tokens_num
from tencentpretrain.training.moving_average import drop_average
from tencentpretrain.training.optimizers import make_optimizer
from tencentpretrain.training.profiling import Profiling
from tencentpretrain.training.report import Report
from tencentpretrain.training.schedules import make_schedule
from tencentpretrain.training.settings import Settings
from tencentpretrain.training.trainer import Plan, Trainer
from tencentpretrain.weights import load_weights

log = logging.getLogger("tencentpretrain")


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
    checkpoint_activations(model, settings.pretrain)
    return model


def checkpoint_activations(model: Model, config: PretrainConfig) -> None:
    """If it is asked for, every module that can recompute its activations in the backward pass does so."""
    if not config.activation_checkpointing:
        return
    able: list[Any] = [module for module in model.modules() if hasattr(module, "recomputation")]
    if not able:
        raise ConfigError("--activation_checkpointing: no module of this model can recompute.")
    for module in able:
        module.recomputation = Recomputation(config.checkpointed_layers, config.checkpointed_keep == "linear")


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


def make_loader(
    settings: Settings, sources: Sequence[Source], engine: Engine, workers_num: int | None
) -> Loader:
    """Batches of this process; `workers_num` None: a process builds them while a GPU makes a step."""
    on_cpu = engine.device.type == "cpu"
    if workers_num is None:
        workers_num = 0 if on_cpu else 1
    kind = PROCESSORS[settings.data.data_processor]
    processors = [kind(source.store, settings.data, source.store.tokenizer) for source in sources]
    weights = [source.weight for source in sources]
    return Loader(
        processors[0] if len(processors) == 1 else MixtureProcessor(processors, weights),
        settings.run.batch_size,
        workers_num,
        targets=settings.model.target,
        rank=engine.rank,
        world_size=engine.world_size,
        trim=not engine.compile,  # each length would be compiled anew
        pin_memory=not on_cpu,
        prefix_lm_loss=settings.model.prefix_lm_loss,
    )


def validation_source(settings: Settings) -> list[Source]:
    path = settings.pretrain.eval_dataset_path
    if path is None:
        return []
    store = TokenStore.open(path)
    if settings.pretrain.verify_dataset:
        store.verify()
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
            tgt_vocab_size=None if tgt_tokenizer is None else settings.vocab_sizes[1],
            further=None if settings.family is None else {"family": settings.family},
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
        return _make_trainer(settings, engine, checkpoints)


def _make_trainer(settings: Settings, engine: Engine, checkpoints: Checkpoints) -> Trainer:
    pretrain = settings.pretrain
    state = checkpoints.find(pretrain.resume, engine.ranks)
    if state is not None and state.step > pretrain.total_steps:
        raise ConfigError(
            f"--total_steps is {pretrain.total_steps}, but {state.path} is of step {state.step}."
        )
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
    training = checkpoints.load(state, publish=engine.rank == 0) if state is not None else {}
    report = Report(
        log_dir if engine.rank == 0 else None,
        pretrain.total_steps,
        training.get("step", 0),
        training.get("validation_due", False),
    )
    schedule = make_schedule(settings.optimization, pretrain.total_steps)
    trainer = Trainer(engine, loader, validation, schedule, checkpoints, report, plan)
    if state is not None:
        trainer.restore(state.path, training)
        if not settings.optimization.ema_decay:
            drop_average(engine.optimizer)
    log.info(f"resume: {resume_line(pretrain.resume, state)}")
    if pretrain.profile and engine.rank == 0:
        Profiling(trainer, log_dir)
    return trainer


def resume_line(resume: str, state: State | None) -> str:
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
        asked = steps * batch * samples / rows
        loader.processor.check_epochs(asked)
        epochs = loader.processor.epochs(asked)
        for number, (weight, own) in enumerate(zip(loader.processor.weights, epochs, strict=True)):
            lines[number] += f"; probability {weight:.3g}, {own:.2f} epochs"
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
