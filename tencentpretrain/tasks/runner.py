"""The programs that fine-tune and infer, once for all tasks: options, loading, training, predictions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from tencentpretrain.config import (
    AdversarialConfig,
    FinetuneConfig,
    InferConfig,
    ModelConfig,
    OptimizationConfig,
    Options,
    RunConfig,
    TokenizerConfig,
)
from tencentpretrain.errors import ConfigError
from tencentpretrain.files import check_not_input, complete_file
from tencentpretrain.registry import TASKS
from tencentpretrain.tasks.base import Task
from tencentpretrain.tasks.finetuning import Finetuning, evaluate, named, predict
from tencentpretrain.tasks.start import check_paths, model_for, start_from
from tencentpretrain.training.engines import DDPEngine, Engine, Place, SingleEngine, choose_engine
from tencentpretrain.training.optimizers import make_optimizer
from tencentpretrain.training.report import Report, start_logging
from tencentpretrain.weights import read_state_dict

log = logging.getLogger("tencentpretrain")


def finetune(name: str, arguments: Sequence[str] | None = None) -> None:
    """The program that trains a model for the task `name`.

    Args:
        arguments: the command line without the program's name; default: the process's.

    Raises:
        UserError: options or data are wrong; before anything is trained where that can be known.
    """
    kind: type[Task] = TASKS[name]
    concerns = (
        ModelConfig, TokenizerConfig, OptimizationConfig, RunConfig, FinetuneConfig, AdversarialConfig,
        *kind.finetune_options,
    )  # fmt: skip
    options = Options(f"Fine-tune a model for {kind.summary}.", *concerns, arguments=arguments)
    start = start_from(options, "pretrained_model_path")
    configs = dict(zip(concerns, options.build(*concerns), strict=True))
    run, config = configs[RunConfig], configs[FinetuneConfig]
    configs[ModelConfig] = model_config = model_for(kind, configs[ModelConfig], config.seq_length)
    if configs[AdversarialConfig].use_adv and "word" not in model_config.embedding:
        raise ConfigError("--use_adv perturbs the embedding 'word', which this model does not have.")
    place = Place.here() or Place()
    kind_of_engine = choose_engine(run.engine, place.world_size)
    if kind_of_engine not in ("single", "ddp"):
        raise ConfigError(f"--engine {kind_of_engine} is for pre-training; fine-tuning has single and ddp.")
    if run.log_path:
        check_not_input(Path(run.log_path), "--log_path", options.paths_read("log_path"))
    start_logging(run, place.rank)
    engine: Engine = SingleEngine(run.precision, run.compile)
    if kind_of_engine == "ddp":
        engine = DDPEngine(place, run.precision, run.compile)
    engine.start()
    if engine.rank > 0:
        log.setLevel(logging.ERROR)  # one rank tells what all do
    with engine.together():
        data = ("train_path", "dev_path", "test_path")
        output = check_paths(options, "output_model_path", data, engine.rank == 0)
        tokenizer = start.tokenizer(configs[TokenizerConfig])
        start.check(model_config, tokenizer)
        task = kind(tokenizer, config.seq_length, configs)
        train, dev = task.read(Path(config.train_path), "train"), task.read(Path(config.dev_path), "dev")
        test = task.read(Path(config.test_path), "test") if config.test_path else None
        torch.manual_seed(config.seed)
        model = task.build(model_config, start.vocab_size(tokenizer))
        loaded = start.load(model)
        engine.prepare(model, lambda module: make_optimizer(module, configs[OptimizationConfig]))
        steps = config.epochs_num * -(-len(train) // run.batch_size)
        log_dir = Path(run.log_dir or f"{output}.logs")
        report = Report(log_dir if engine.rank == 0 else None, steps)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    sizes = f"examples: {len(train)} to train, {len(dev)} to choose the best weights"
    if test is not None:
        sizes += f", {len(test)} to test"
    told = (f"parameters: {parameters:,}", *loaded, sizes, *task.about(train))
    for line in (*options.notes, *engine.decisions(), *told):
        log.info(line)
    try:
        family = start.description.get("family")
        Finetuning(engine, task, configs, report, output, steps, family).run(train, dev)
        if test is not None:
            engine.model.load_state_dict(read_state_dict(output))
            score, _ = evaluate(engine, task, test, run.batch_size)
            log.info(f"test set, best weights:\n{score.text}")
            report.keep({"step": steps, **named("test", score)})
    finally:
        report.close()
    engine.close()


def infer(name: str, arguments: Sequence[str] | None = None) -> None:
    """The program that writes the predictions of a model fine-tuned for the task `name`.

    Args:
        arguments: as for `finetune`.

    Raises:
        UserError: options, weights or data are wrong; then there are no predictions.
    """
    kind: type[Task] = TASKS[name]
    concerns = (ModelConfig, TokenizerConfig, InferConfig, *kind.infer_options)
    options = Options(f"Predict with a model fine-tuned for {kind.summary}.", *concerns, arguments=arguments)
    start = start_from(options, "load_model_path", finetuned=True)
    configs = dict(zip(concerns, options.build(*concerns), strict=True))
    config = configs[InferConfig]
    model_config = model_for(kind, configs[ModelConfig], config.seq_length)
    output = check_paths(options, "prediction_path", ("test_path",))
    start_logging(RunConfig())
    engine = SingleEngine(config.precision)
    tokenizer = start.tokenizer(configs[TokenizerConfig])
    start.check(model_config, tokenizer)
    task = kind(tokenizer, config.seq_length, configs, start.labels)
    examples = task.read(Path(config.test_path), "infer")
    model = task.build(model_config, start.vocab_size(tokenizer))
    loaded = start.load(model)
    engine.prepare(model)
    for line in (*options.notes, *engine.decisions(), *loaded, f"examples: {len(examples)}"):
        log.info(line)
    outputs, _ = predict(engine, examples, config.batch_size)
    columns = task.columns(outputs, examples)
    rows = [tuple(columns), *zip(*columns.values(), strict=True)]
    with complete_file(output) as temporary:
        temporary.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8", newline="\n")
    log.info(f"predictions: {output}")
