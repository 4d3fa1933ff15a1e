"""Weights into a model: names old and new, what was loaded and what not, why something does not fit."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tencentpretrain.config import ModelConfig
from tencentpretrain.description import (
    CHANGEABLE,
    check_against_description,
    complete_weights,
    described_config,
    description_path,
    read_description,
    write_description,
)
from tencentpretrain.errors import ConfigError, WeightsError, weights_of
from tencentpretrain.files import complete_file
from tencentpretrain.state_dict import (
    StateDict,
    assign,
    in_words,
    read_tensors,
    renamed,
    same,
    save_weights,
    strip_wrappers,
    write_tensors,
)

__all__ = [
    "CHANGEABLE", "LoadReport", "check_against_description", "described_config", "load_weights",
    "publish_undescribed", "publish_weights", "read_description", "read_state_dict", "save_weights",
    "write_description",
]  # fmt: skip

# Names of UER-py and of TencentPretrain before its modules were registered by name.
_OLD_NAMES = (
    (r"^((?:tgt_)?embedding)\.word_embedding\.", r"\1.word.embedding."),
    (r"^((?:tgt_)?embedding)\.position_embedding\.", r"\1.pos.embedding."),
    (r"^((?:tgt_)?embedding)\.segment_embedding\.", r"\1.seg.embedding."),
    (r"^target\.mlm_linear_(\d)\.", r"target.mlm.linear_\1."),
    (r"^target\.n?sp_linear_(\d)\.", r"target.sp.linear_\1."),
    (r"^target\.sop_linear_(\d)\.", r"target.sp.linear_\1."),
    (r"^target\.output_layer\.", "target.lm.output_layer."),
)
_OLD_MLM_NORM = (r"^target\.layer_norm\.", "target.mlm.layer_norm.")  # a prompt model has this name today


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What became of the names of a model and of a weights file; `str()` is three lines, and the notes.

    Attributes:
        loaded: parameters of the model that have the file's values.
        missing: parameters of the model that the file lacks: they keep their random values.
        unexpected: tensors of the file that the model has no place for: they were ignored.
        notes: settings with which the model computes something else than the one that the weights are of, a
            line each.
    """

    path: Path
    loaded: list[str]
    missing: list[str]
    unexpected: list[str]
    notes: list[str] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        total = len(self.loaded) + len(self.missing)
        return "\n".join(
            [
                f"loaded: {len(self.loaded)} of {total} tensors of the model, from {self.path}",
                f"left at random: {_listed(self.missing)}",
                f"ignored: {_listed(self.unexpected)}",
                *self.notes,
            ]
        )


def _listed(names: Sequence[str]) -> str:
    """Few names as they are, many by the modules they belong to."""
    if not names:
        return "none"
    if len(names) > 3:
        modules: dict[str, int] = {}
        for name in names:
            module = ".".join(name.split(".")[:-1][:2]) or name
            modules[module] = modules.get(module, 0) + 1
        words = [f"{module} ({count})" for module, count in modules.items()]
        return f"{len(names)}: {', '.join(words[:8])}{' …' if len(words) > 8 else ''}"
    return ", ".join(names)


def publish_weights(tensors: Mapping[str, Tensor], path: str | Path, description: Mapping[str, Any]) -> None:
    """Write weights as `save_weights` does, and the description beside them; both appear, or neither does.

    Args:
        description: of `make_description`.
    """
    path = Path(path)
    with complete_weights(path, description) as temporary:
        write_tensors(tensors, temporary, path)


def publish_undescribed(tensors: Mapping[str, Tensor], path: str | Path) -> list[str]:
    """Write weights as `save_weights` does, and remove a description that other weights of this name left.

    Returns:
        What was removed, a line for the user.
    """
    path = Path(path)
    stale = description_path(path)
    there = stale.is_file()
    with complete_file(path) as temporary:
        write_tensors(tensors, temporary, path)
        # Before the weights appear: they would be taken for the model that it describes.
        stale.unlink(missing_ok=True)
    return [f"{stale} is removed: it described other weights"] if there else []


def read_state_dict(path: str | Path) -> StateDict:
    """Tensors under the published names (contract §3), on the CPU.

    Args:
        path: a file of torch.save or safetensors, of ours, of UER-py or TencentPretrain; a directory of
            shards; or a Hugging Face directory or file of a known family, which is converted.

    Raises:
        WeightsError: what the path is instead of weights, and what to do.
    """
    return dict(open_weights(Path(path))[0])


def open_weights(path: Path) -> tuple[Mapping[str, Tensor], list[str]]:
    """Tensors as `read_state_dict`, of several files one at a time (`LazyTensors`), and the names of those
    that conversion left out on purpose."""
    from tencentpretrain.conversion import huggingface, maps

    if huggingface.is_model_directory(path):
        model = huggingface.read(path)
        return model.tensors, model.ignored
    tensors = with_todays_names(strip_wrappers(read_tensors(path)))
    if not tensors:
        raise WeightsError(f"{path} holds no tensors.")
    if maps.families_of(tensors):
        model = huggingface.read(path, tensors)
        return model.tensors, model.ignored
    return tensors, []


def with_todays_names(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Tensors of an older UER-py or TencentPretrain file under the names of today."""
    old_mlm = any(name.startswith("target.mlm_linear_") for name in tensors)
    names = {}
    for old in tensors:
        name = old
        for pattern, replacement in (*_OLD_NAMES, _OLD_MLM_NORM) if old_mlm else _OLD_NAMES:
            name = re.sub(pattern, replacement, name)
        names[name] = old
    return renamed(tensors, names)


def _with_dual_names(tensors: Mapping[str, Tensor], model: Iterable[str]) -> Mapping[str, Tensor]:
    """A dual embedding is `embedding.dual` in a pre-training model and `embedding` in a siamese one."""
    theirs, ours = (
        "embedding.dual." if any(name.startswith("embedding.dual.") for name in names) else "embedding."
        for names in (tensors, model)
    )
    names = {re.sub(rf"^{re.escape(theirs)}(?=embedding_|stream_)", ours, name): name for name in tensors}
    return renamed(tensors, names)


# What may differ from a description and still changes outputs.
_TOLD = {"layernorm_eps": "outputs differ a little", "pooling": "the head was trained on another vector"}
_READS_POOLING = r"target\.(sp|cls)\.|output_layer_1\."


def load_weights(model: nn.Module, path: str | Path) -> LoadReport:
    """Copy weights into a model's parameters of the same names.

    Args:
        path: as `read_state_dict`.

    Raises:
        WeightsError: the file cannot be read or does not fit: with the shapes and the likely cause. The
            model is unchanged then.
    """
    path = Path(path)
    tensors, ignored = open_weights(path)
    config = getattr(model, "config", None)
    description = read_description(path) if isinstance(config, ModelConfig) else None
    if isinstance(config, ModelConfig) and description is not None:
        # Heads, activation or mask can be wrong without any shape being wrong. Epsilon is let through, and
        # told: the published configurations leave it out, and its effect is in the seventh digit.
        others = {name: value for name, value in description.items() if name != "layernorm_eps"}
        try:
            check_against_description(config, others, path)
        except ConfigError as error:
            raise WeightsError(str(error)) from None
    parameters = model.state_dict()
    tensors = _with_dual_names(tensors, parameters)
    common = check_fit(path, tensors, parameters)
    tied = _check_ties(path, tensors, model)
    with torch.no_grad():
        for name in common:
            assign(parameters[name], tensors[name])
    present = {*common, *tied}
    pooled = any(map(re.compile(_READS_POOLING).match, common))
    notes = [
        f"`{name}` is {given}, but the weights were made with {description[name]}: {what}"
        for name, what in _TOLD.items()
        if description is not None
        and description.get(name, given := getattr(config, name)) != given
        and (pooled or name != "pooling")
    ]
    return LoadReport(
        path,
        [name for name in parameters if name in present],
        [name for name in parameters if name not in present],
        [name for name in tensors if name not in parameters] + ignored,
        notes,
    )


def check_fit(path: Path, tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> list[str]:
    """Names that file and model share; WeightsError where family, layers or shapes differ, or one is NaN."""
    common = [name for name in tensors if name in parameters]
    _check_family(path, tensors, parameters, common)
    _check_layers(path, tensors, parameters)
    # Nothing of torch is kept from one tensor to the next: it would lie between them and keep memory in use.
    shapes: dict[str, tuple[int, ...]] = {}
    quantised, broken = [], []
    for name in common:
        with weights_of(path):  # where it cannot be converted
            tensor = tensors[name]
        shapes[name] = tuple(tensor.shape)
        if tensor.is_floating_point() != parameters[name].is_floating_point():
            quantised.append(f"{name} is of type {tensor.dtype}, the model's is {parameters[name].dtype}")
        if not _is_finite(tensor):
            broken.append(name)
    if quantised:
        raise WeightsError(f"{path}: {quantised[0]}; quantised weights must be converted back first.")
    _check_shapes(path, shapes, parameters)
    if broken:
        raise WeightsError(
            f"{path}: {broken[0]} has values that are NaN or infinite; the run that wrote it diverged, or "
            "the file is damaged. Take weights of an earlier step, or copy the file again."
        )
    return common


def _check_family(
    path: Path, tensors: Iterable[str], parameters: Iterable[str], common: Iterable[str]
) -> None:
    """At least something must have a place, and the body must where both have one."""
    shared = {name.partition(".")[0] for name in common}
    for part in ("encoder", "decoder") if shared else ("",):
        theirs = [name for name in tensors if name.startswith(part)]
        ours = [name for name in parameters if name.startswith(part)]
        if theirs and ours and part not in shared:
            from tencentpretrain.conversion.maps import FAMILIES

            raise WeightsError(
                f"{path} does not fit the model, it is probably of another family: none of its {len(theirs)} "
                f"tensors {f'of the {part} ' if part else ''}has a place. It has names such as "
                f"'{theirs[0]}', the model '{ours[0]}'. Names that are converted are those of Hugging Face's "
                f"{', '.join(family.name for family in FAMILIES)}."
            )


def _check_layers(path: Path, tensors: Iterable[str], parameters: Iterable[str]) -> None:
    theirs, ours = layers_of(tensors), layers_of(parameters)
    for stack in theirs.keys() & ours.keys():
        if theirs[stack] != ours[stack]:
            option = "decoder_layers_num" if stack.startswith("decoder") else "layers_num"
            raise WeightsError(
                f"{path} has {theirs[stack]} layers in {stack}, the model has {ours[stack]}; "
                f"set `{option}` to {theirs[stack]}."
            )


def layers_of(names: Iterable[str]) -> dict[str, int]:
    """Numbered modules of encoder and decoder, to how many there are."""
    sizes: dict[str, int] = {}
    for name in names:
        found = re.match(r"((?:en|de)coder\.[^.]+)\.(\d+)\.", name)
        if found:
            sizes[found[1]] = max(sizes.get(found[1], 0), int(found[2]) + 1)
    return sizes


_CAUSES = (
    (
        r"(tgt_)?embedding\.word\.|target\.(mlm\.linear_2|lm\.output_layer)\.",
        "vocabulary: the file has {theirs} tokens, the model {ours}; give the one the weights were made with",
    ),
    (
        r"(tgt_)?embedding\.pos\.",
        "positions: set `max_seq_length` to {theirs} (the model has {ours})",
    ),
    (r"(tgt_)?embedding\.seg\.", "segments: the file has {theirs} with padding, the model {ours}"),
    (
        r"target\.cls\.linear_2",
        "labels: the file has {theirs} classes, the model {ours}; set `labels_num`",
    ),
    (
        r"output_layers?_2\.|output_layer\.|classifier\.",
        "labels: the file was fine-tuned for {theirs} classes, this task has {ours}; fine-tune for other "
        "classes from weights without a head, and predict with `labels_num` {theirs}",
    ),
)


def _check_shapes(
    path: Path, shapes: Mapping[str, tuple[int, ...]], parameters: Mapping[str, Tensor]
) -> None:
    wrong = [name for name in parameters if name in shapes and shapes[name] != parameters[name].shape]
    if not wrong:
        return
    lines = [
        f"{name}: {in_words(shapes[name])} in the file, {in_words(parameters[name].shape)} in the model"
        for name in wrong[:5]
    ]
    lines += [f"and {len(wrong) - 5} more"] if len(wrong) > 5 else []
    causes = [_likely_cause(name, shapes[name], parameters[name].shape) for name in wrong]
    known = [cause for cause in dict.fromkeys(causes) if cause is not None]
    if None in causes:
        known = [
            "another size or family of model: hidden_size, emb_size, feedforward_size and the like must be "
            "those the weights were made with"
        ]
    raise WeightsError(
        "\n  ".join([f"{path} does not fit the model:", *lines, f"likely cause: {'; '.join(known)}."])
    )


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    wide = tensor if tensor.itemsize > 1 else tensor.float()
    # One pass without a temporary, and NaN goes through it.
    return bool(torch.stack(wide.aminmax()).isfinite().all())


def _likely_cause(name: str, theirs: Sequence[int], ours: Sequence[int]) -> str | None:
    for pattern, words in _CAUSES:
        if re.match(pattern, name) and theirs[1:] == ours[1:]:
            return words.format(theirs=theirs[0], ours=ours[0])
    if re.search(r"\.feed_forward\.linear_(1|gate)\.", name) and theirs[1:] == ours[1:]:
        return f"feed-forward layers: set `feedforward_size` to {theirs[0]}"
    if (
        re.search(r"\.feed_forward\.linear_2\.", name)
        and theirs[:1] == ours[:1]
        and len(theirs) == len(ours) == 2
    ):
        return f"feed-forward layers: set `feedforward_size` to {theirs[1]}"
    return None


def _check_ties(path: Path, tensors: Mapping[str, Tensor], model: nn.Module) -> list[str]:
    """Names of the model that are absent from the file, but are one with a name that is there."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    filled = []
    for names in groups.values():
        there = [name for name in names if name in tensors]
        for name in there[1:]:
            if not same(tensors[there[0]], tensors[name]):
                raise WeightsError(
                    f"{path} has different tensors {there[0]} and {name}, which the model has as one; "
                    "set `tie_weights` to false."
                )
        if there:
            filled += [name for name in names if name not in tensors]
    return filled
