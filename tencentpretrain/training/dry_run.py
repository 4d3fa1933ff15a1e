"""What would be trained, and what it would cost."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import torch

from tencentpretrain.config import as_json
from tencentpretrain.data.loader import LoadedBatch
from tencentpretrain.model import Model
from tencentpretrain.registry import PROCESSORS
from tencentpretrain.training.engines import Engine
from tencentpretrain.training.engines.base import DTYPES
from tencentpretrain.training.estimate import parameters_num, parts_of
from tencentpretrain.training.memory import (
    Memory,
    free_memory,
    full_batch,
    judge_depth,
    largest_batch,
    measure_memory,
    program_memory,
)
from tencentpretrain.training.optimizers import make_optimizer
from tencentpretrain.training.pretraining import (
    checkpoint_activations,
    cost_of_first_batch,
    describe_data,
    describe_model,
    fresh_model,
    make_checkpoints,
    make_engine,
    make_loader,
    resume_line,
    validation_source,
)
from tencentpretrain.training.settings import Settings


def dry_run(settings: Settings) -> str:
    """What would be trained, and what it would cost; nothing is written, no other process is met."""
    pretrain, engine = settings.pretrain, make_engine(settings)
    with torch.device("meta"):
        model = fresh_model(settings)
    loader = make_loader(settings, settings.sources, engine, workers_num=0)
    held_out = validation_source(settings)
    validation = make_loader(settings, held_out, engine, workers_num=0) if held_out else None
    cost, loaded = cost_of_first_batch(settings, engine)
    state = make_checkpoints(settings, engine.precision).find(pretrain.resume)
    options = as_json(*settings.configs).items()
    batches = pretrain.accumulation_steps * settings.place.world_size
    lines = [
        *settings.notes, *engine.decisions(), f"model: {describe_model(settings, model)}", "modules:",
        *(f"  {name:24s} {parameters_num(module):>14,d}" for name, module in parts_of(model)),
        *describe_data(settings, loader, validation), f"resume: {resume_line(pretrain.resume, state)}",
        f"step: {batches} × {settings.run.batch_size} samples, about "
        f"{loaded.tokens * batches:,} tokens without padding, {cost.flops * batches / 1e9:,.1f} GFLOP",
        *describe_memory(settings, engine, loaded),
        "options:", *(f"  {name}: {json.dumps(value, ensure_ascii=False)}" for name, value in options),
    ]  # fmt: skip
    return "\n".join(lines)


def describe_memory(settings: Settings, engine: Engine, loaded: LoadedBatch) -> list[str]:
    """What each process needs, whether its device has it, and what a training state takes."""
    pretrain, rows = settings.pretrain, settings.run.batch_size
    target = PROCESSORS[settings.data.data_processor].target_length
    tgt_length = getattr(settings.data, target) if settings.model.decoder is not None else None

    def build(layers_num: int) -> Model:
        model = fresh_model(replace(settings, model=replace(settings.model, layers_num=layers_num)))
        checkpoint_activations(model, pretrain)
        return model

    def measure_depth(rows: int, layers_num: int) -> Memory:
        return measure_memory(
            partial(build, layers_num),
            partial(make_optimizer, config=settings.optimization),
            full_batch(loaded.batch, rows, settings.data.seq_length, tgt_length),
            engine.device,
            DTYPES.get(engine.precision),
            accumulation=pretrain.accumulation_steps > 1,
            gradients_stay=settings.place.world_size > 1,
        )

    def measure(rows: int) -> Memory:
        depth = settings.model.layers_num
        if settings.model.decoder is not None:
            return measure_depth(rows, depth)
        return judge_depth(partial(measure_depth, rows), depth, pretrain.checkpointed_layers)

    on_cpu = engine.device.type == "cpu"
    on_host = () if on_cpu else engine.on_host

    def part(whole: Memory) -> Memory:
        return whole.shared(settings.place.world_size, engine.divided).without(on_host)

    whole, room, program = measure(rows), free_memory(engine.device), 0
    memory = part(whole)
    host = free_memory(torch.device("cpu")) // len(pretrain.local_ranks)
    if on_cpu:  # the processes of this machine share it, and the program itself counts
        program, room = program_memory(), host
    largest = largest_batch(lambda rows: part(measure(rows)), rows, memory, room)
    title = f"{engine.device} has {room / 1e9:.2f} GB free for each process"
    if largest >= rows:
        fits = f"fits: {title}, enough for --batch_size {largest}"
    elif largest:
        fits = f"does not fit: {title}, enough for --batch_size {largest}"
    else:
        fits = f"does not fit: {title}, not enough for one row; --activation_checkpointing needs less"
    if program and (pretrain.activation_checkpointing or pretrain.accumulation_steps > 1):
        fits += "; the allocator of a CPU may keep half as much again of what is recomputed or adds up"
    parts = ", ".join(
        f"{name} {size / 1e9:.2f}"
        for name, size in (
            ("weights", memory.weights), ("gradients", memory.gradients), ("optimizer", memory.optimizer),
            ("activations and what operations need", memory.activations), ("the program", program),
        )
        if size
    )  # fmt: skip
    moved = whole.shared(settings.place.world_size, engine.divided).peak - memory.peak
    return [
        f"memory: about {(memory.peak + program) / 1e9:.2f} GB in a process: {parts}",
        *([f"host: {', '.join(on_host)} {moved / 1e9:.2f} GB, {host / 1e9:.2f} GB free"] if on_host else []),
        fits,
        f"disk: {(whole.weights + whole.optimizer) / 1e9:.2f} GB a training state, "
        f"{pretrain.keep_checkpoints} are kept",
    ]
