"""The conversion programs: what `scripts/convert_*` share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tencentpretrain.config import ModelConfig, Options, TokenizerConfig, load_config, option, options_of
from tencentpretrain.conversion import huggingface
from tencentpretrain.conversion.detection import detect
from tencentpretrain.conversion.family import Family
from tencentpretrain.conversion.huggingface import OurModel, TheirModel
from tencentpretrain.conversion.huggingface.tokenizers import (
    Tokenizers,
    load_tokenizers,
    tokenizer_notes,
)
from tencentpretrain.conversion.maps import FAMILIES
from tencentpretrain.conversion.maps.bert import BERT
from tencentpretrain.conversion.sentence_transformers import SENTENCES
from tencentpretrain.conversion.siamese import is_siamese, one_stream, siamese_values, two_streams
from tencentpretrain.conversion.verification import check_verifiable, verify
from tencentpretrain.description import (
    described_config,
    description_path,
    make_description,
    read_description,
)
from tencentpretrain.errors import ConfigError, DataError, WeightsError, weights_of
from tencentpretrain.files import check_not_input
from tencentpretrain.model import build_model
from tencentpretrain.state_dict import WHOLE
from tencentpretrain.tokenizers import build_tokenizer, load_tokenizer
from tencentpretrain.tokenizers.load import has_two_sides
from tencentpretrain.weights import (
    check_fit,
    layers_of,
    open_weights,
    publish_undescribed,
    publish_weights,
)


@dataclasses.dataclass(frozen=True)
class ConversionConfig:
    """Conversion."""

    input_model_path: str = option("models/input_model.bin", "Weights to convert: a file or a directory.")
    output_model_path: str = option("models/output_model.bin", "Where the result goes.")
    layers_num: int | None = option(
        None, "Encoder layers; counted in the weights, checked where given.", minimum=1
    )


@dataclasses.dataclass(frozen=True)
class DecoderConversionConfig(ConversionConfig):
    """Conversion."""

    decoder_layers_num: int | None = option(
        None, "Decoder layers; counted in the weights, checked where given.", minimum=1
    )


@dataclasses.dataclass(frozen=True)
class DirectoryConfig:
    """A Hugging Face directory: what weights may not say, and its files."""

    config_path: str | None = option(
        None, "Model configuration, JSON; default: what lies beside the weights."
    )
    max_seq_length: int | None = option(
        None,
        "Positions that are written where the model computes them (Pegasus, Marian); default: what the "
        "configuration says, or 1024.",
        minimum=1,
    )
    max_shard_size: float = option(
        5.0, "GB (10^9 bytes) of weights a file holds at most; a larger model is several files.", minimum=0
    )


@dataclasses.dataclass(frozen=True)
class VerificationConfig:
    """Verification."""

    verify: bool = option(
        False,
        "Run both models on random input and print the largest difference; fails above 1e-4 of the largest "
        "number. Needs Transformers and a Hugging Face directory.",
    )


@dataclasses.dataclass(frozen=True)
class DirectionConfig:
    """Direction."""

    to: str = option(..., "What the result is for.", choices=("tencentpretrain", "huggingface"))
    family: str | None = option(
        None,
        "Family of the model; default: found out from names and configuration.",
        choices=lambda: [family.name for family in FAMILIES],
    )


def type_concern(families: Sequence[Family]) -> type[Any]:
    """The option --type with what the families can convert."""
    types = {name: parts for family in families for name, parts in family.types.items()}
    help = "What is converted: " + "; ".join(
        f"{name}: {' '.join(parts) or 'none'}" for name, parts in types.items()
    )
    first = next(iter(types))
    field = ("type", str, option(first, f"{help}.", choices=tuple(types)))
    return dataclasses.make_dataclass("TypeConfig", [field], frozen=True, namespace={"__doc__": "Targets."})


def _conversion_concern(families: Sequence[Family]) -> type[ConversionConfig]:
    has_decoder = any("decoder" in family.fixed_ours for family in families)
    return DecoderConversionConfig if has_decoder else ConversionConfig


def chosen_family(families: Sequence[Family], kind: str) -> tuple[Family, tuple[str, ...]]:
    return next((family, family.types[kind]) for family in families if kind in family.types)


def from_huggingface(*families: Family) -> None:
    """Read a Hugging Face directory or weights file; write weights of ours and their description.

    Args:
        families: that the program is for; --type tells which.
    """
    concerns = (_conversion_concern(families), type_concern(families), VerificationConfig)
    config, chosen, verification = Options(
        f"Convert a Hugging Face {families[0].name} to weights of this toolkit.", *concerns
    ).build(*concerns)
    bring_from_huggingface(config, verification, *chosen_family(families, chosen.type))


def to_huggingface(*families: Family) -> None:
    """Read weights of ours; write a Hugging Face directory, or a file if the output is named as one.

    Args:
        families: that the program is for; --type tells which.
    """
    concerns = (_conversion_concern(families), type_concern(families), VerificationConfig, DirectoryConfig)
    config, chosen, verification, directory, tokenizer = Options(
        f"Convert weights of this toolkit to a Hugging Face {families[0].name}: a directory, or "
        "its weights alone where the output ends in .bin, .pt or .safetensors.",
        *concerns,
        TokenizerConfig,
    ).build(*concerns, TokenizerConfig)
    family, parts = chosen_family(families, chosen.type)
    _to_huggingface(config, verification, directory, tokenizer, family, parts)


def convert() -> None:
    """Either direction, of any family, which is found out."""
    concerns = (
        DirectionConfig, DecoderConversionConfig, VerificationConfig, DirectoryConfig, TokenizerConfig
    )  # fmt: skip
    options = Options(
        "Convert weights of this toolkit to Hugging Face, or back; the family is found out.", *concerns
    )
    direction, config, verification, directory, tokenizer = options.build(*concerns)
    family = next((family for family in FAMILIES if family.name == direction.family), None)
    if direction.to == "huggingface":
        return _to_huggingface(config, verification, directory, tokenizer, family)
    without = [
        name for name in options_of(DirectoryConfig) | options_of(TokenizerConfig) if options.given(name)
    ]
    if without:
        raise ConfigError([f"--{name} is for --to huggingface; leave it out." for name in without])
    bring_from_huggingface(config, verification, family)


def sbert_from_huggingface() -> None:
    """Read a BERT, of sentence-transformers or not; write it as both streams of a siamese model."""
    (config,) = Options(
        "Convert a BERT of sentence-transformers to a siamese model of this toolkit.", ConversionConfig
    ).build(ConversionConfig)
    bring_from_huggingface(config, VerificationConfig(), BERT, siamese=True)


def sbert_to_huggingface() -> None:
    """Read a siamese BERT, or one alone; write a directory of sentence-transformers, or its weights alone."""
    concerns = (ConversionConfig, DirectoryConfig, TokenizerConfig)
    config, directory, tokenizer = Options(
        "Convert a siamese BERT of this toolkit, or a BERT, to a directory of sentence-transformers, or its "
        "weights alone where the output ends in .bin, .pt or .safetensors.",
        *concerns,
    ).build(*concerns)
    _to_huggingface(config, VerificationConfig(), directory, tokenizer, BERT, sentences=True)


def bring_from_huggingface(
    config: ConversionConfig,
    verification: VerificationConfig,
    family: Family | None,
    parts: Sequence[str] | None = None,
    known: Mapping[str, Any] | None = None,
    siamese: bool = False,
) -> None:
    """`bring` for a model of Transformers; arguments as `huggingface.read`."""

    def read(source: Path) -> TheirModel:
        model = huggingface.read(source, parts=parts, wanted=family, known=known)
        if family is not None and model.family.name != family.name:
            raise ConfigError(
                f"--input_model_path: {source} is a {model.family.name} model, not {family.name}."
            )
        return model

    if verification.verify:
        check_verifiable(Path(config.input_model_path))
    bring(config, read, siamese)
    if verification.verify:
        verify(Path(config.output_model_path), Path(config.input_model_path))


def bring(config: ConversionConfig, read: Callable[[Path], TheirModel], siamese: bool = False) -> None:
    """Read a model of theirs, write it as weights of ours, and say what was done.

    Args:
        siamese: write it twice, as the streams of a dual model.
    """
    source, target = checked_paths(config)
    if target.is_dir():
        raise ConfigError(
            f"--output_model_path: {target} is a directory; name a file, as {target}/model.bin."
        )
    if target.name in WHOLE and huggingface.is_model_directory(target.parent):
        raise ConfigError(
            f"--output_model_path: {target} would lie in a Hugging Face directory, as its weights; give "
            "another place."
        )
    own = description_path(target).is_file()  # of an earlier conversion
    if source.is_dir() and target.is_file() and target.resolve().is_relative_to(source.resolve()) and not own:
        raise ConfigError(
            f"--output_model_path: {target} is a file of --input_model_path {source}; give another path."
        )
    model = read(source)
    check_layers(source, model.tensors, config)
    tensors = two_streams(model.tensors) if siamese else model.tensors
    lines = [*model.notes, f"ignored: {', '.join(model.ignored) or 'none'}"]
    if model.has_config:
        description, said = _describe(model, source, target)
        lines.append(said)
        publish_weights(tensors, target, siamese_values(description) if siamese else description)
    else:
        lines += publish_undescribed(tensors, target)
        lines.append(
            f"{description_path(target)} is not written: there is no config.json with {source} that names "
            "a model_type; give the directory where there is one"
        )
    layers = layers_of(model.tensors)
    counts = [f"{layers[stack]} layers of {stack}" for stack in huggingface.LAYERS if stack in layers]
    print(
        ", ".join(
            [f"{target}: {len(tensors)} tensors", *counts, f"targets: {' '.join(model.parts) or 'none'}"]
        ),
        *lines,
        sep="\n",
    )


def checked_paths(config: ConversionConfig) -> tuple[Path, Path]:
    """Input and output, which must not be one."""
    target = Path(config.output_model_path)
    check_not_input(target, "--output_model_path", {"input_model_path": config.input_model_path})
    return Path(config.input_model_path), target


def _describe(model: TheirModel, source: Path, target: Path) -> tuple[dict[str, Any], str]:
    home = source if source.is_dir() else source.parent
    # A configuration names a target even if there is no head; its weights are left at random, and reported.
    base = next((family for family in FAMILIES if family.name == model.family.name), model.family)
    targets = (
        model.parts if model.family.head is None and model.parts else next(iter(base.types.values()))[:1]
    )
    try:
        config = described_config(source, model.values | {"target": list(targets)})
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    vocab_size = _check_shapes(source, model.tensors, config)
    tokenizers, why = Tokenizers(), "no tokenizer files"
    if huggingface.has_tokenizer(home):
        try:
            tokenizers = load_tokenizers(home, has_two_sides(home))
        except DataError as error:
            why = str(error)
    if surplus := tokenizers.surplus(model.tensors):
        tokenizers, why = Tokenizers(), surplus
    said = "configuration and tokenizer" if tokenizers.source is not None else f"configuration; {why}"
    further = {"family": base.name} | {name: model.values[name] for name in SENTENCES if name in model.values}
    if model.token_ids:
        further["token_ids"] = dict(model.token_ids)
    target_size = tgt_vocab_size(model.tensors) or vocab_size
    description = make_description(
        target,
        config,
        tokenizers.source,
        model.labels,
        vocab_size=vocab_size,
        tgt_tokenizer=tokenizers.target,
        tgt_vocab_size=target_size if tokenizers.target is not None or target_size != vocab_size else None,
        further=further,
    )
    return description, f"{description_path(target)}: {said}"


def _to_huggingface(
    config: ConversionConfig,
    verification: VerificationConfig,
    directory: DirectoryConfig,
    tokenizer_config: TokenizerConfig,
    family: Family | None,
    parts: Sequence[str] | None = None,
    *,
    sentences: bool = False,
) -> None:
    source, target = checked_paths(config)
    if verification.verify:
        check_verifiable(target, written=True)
    to_directory = not huggingface.is_file_name(target)
    if to_directory:
        huggingface.check_replaceable(target)
    description = read_description(source) or {}
    ours = _read_ours(source, description, directory, to_directory, sentences)
    check_layers(source, ours.tensors, config)
    if to_directory:
        tokenizers = _tokenizers(source, description, tokenizer_config)
        if surplus := tokenizers.surplus(ours.tensors):
            raise WeightsError(
                f"{source}: {surplus}; give the tokenizer that the weights were made with (--vocab_path, "
                "--spm_model_path)."
            )
        one_sided = tokenizers.one_sided(ours.tensors)
        if one_sided is not None:
            tokenizers = Tokenizers()
        ours = dataclasses.replace(ours, tokenizer=tokenizers.source, tgt_tokenizer=tokenizers.target)
    with weights_of(source):
        if family is None or parts is None:
            families = FAMILIES if family is None else (family,)
            family = detect(ours, families, description.get("family"))
        parts = family.parts if parts is None else parts
        ignored, notes = huggingface.write(target, family, ours, parts, directory.max_shard_size * 1e9)
    print(
        f"{target}: {family.name}, {len(ours.tensors) - len(ignored)} tensors converted",
        f"ignored: {', '.join(ignored) or 'none'}",
        *notes,
        sep="\n",
    )
    if ours.config is not None:
        for line in huggingface.departures(family, ours.config):
            print(line)
    if to_directory:
        for line in tokenizer_notes(family, tokenizers) if one_sided is None else [one_sided]:
            print(line)
        if tokenizers.source is None and not ours.token_ids:
            print(f"not known without a tokenizer, and left at their defaults: {', '.join(family.token_ids)}")
    if verification.verify:
        verify(source, target, ours.config)


def _read_ours(
    source: Path,
    description: Mapping[str, Any],
    directory: DirectoryConfig,
    to_directory: bool,
    sentences: bool,
) -> OurModel:
    """Weights of ours with what their description and the options say, but for the tokenizer.

    Args:
        sentences: they are of sentence embeddings, whatever the description says.
    """
    tensors, _ = open_weights(source)
    sentences = sentences or "normalize_features" in description
    if is_siamese(tensors):
        tensors, sentences = one_stream(source, tensors), True
    config, pooling = None, None
    # A file needs no configuration, but for families whose heads are turned round.
    if to_directory or directory.config_path is not None or description:
        config = _model_config(source, description, directory)
        pooling = config.pooling
        if config.is_dual:
            config = dataclasses.replace(config.streams[0], target=("mlm",))
        if sentences:  # theirs says it beside the model, whose heads read the first state
            config = dataclasses.replace(config, pooling="first")
        _check_shapes(source, tensors, config)
    length = directory.max_seq_length
    return OurModel(
        tensors,
        config,
        labels=description.get("labels"),
        token_ids=description.get("token_ids", {}),
        known={} if length is None else {"max_seq_length": length},
        sentences={**description, "pooling": pooling} if sentences else None,
    )


def _model_config(source: Path, description: Mapping[str, Any], directory: DirectoryConfig) -> ModelConfig:
    if directory.config_path is not None:
        config = load_config(directory.config_path)
    elif description:
        config = described_config(source, description)
    else:
        raise ConfigError(
            f"{source}: there is no {description_path(source).name} beside it that says what the model is, "
            "which config.json needs; give --config_path, or an output path that ends in .bin."
        )
    if directory.max_seq_length is not None:
        config = dataclasses.replace(config, max_seq_length=directory.max_seq_length)
    return config


def _tokenizers(source: Path, description: Mapping[str, Any], config: TokenizerConfig) -> Tokenizers:
    """Those that the description names, or for the encoder's side that of the options."""
    theirs = source.is_dir() and huggingface.is_model_directory(source)
    path = source if theirs else description_path(source)
    two = "tgt_tokenizer_path" in description
    if config.vocab_path is not None or config.spm_model_path is not None:
        return Tokenizers(build_tokenizer(config), load_tokenizer(path, "tgt") if two else None)
    return load_tokenizers(path, two) if "tokenizer_path" in description else Tokenizers()


def check_layers(source: Path, tensors: Mapping[str, Tensor], config: ConversionConfig) -> None:
    """Refuse numbers of layers that the tensors contradict; a shared layer (ALBERT) has none."""
    layers = layers_of(tensors)
    for stack, name in huggingface.LAYERS.items():
        given, found = getattr(config, name, None), layers.get(stack)
        if given is not None and found is not None and given != found:
            raise ConfigError(f"`{name}` is {given}, but {source} has {found} layers; leave the option out.")


def _check_shapes(source: Path, tensors: Mapping[str, Tensor], config: ModelConfig) -> int:
    """Refuse a configuration that the tensors contradict; returns the size of the vocabulary."""
    vocab_size = tensors["embedding.word.embedding.weight"].shape[0]
    with torch.device("meta"):
        classes = tensors.get("target.cls.linear_2.bias", ())
        model = build_model(config, vocab_size, len(classes) or None, tgt_vocab_size(tensors))
        check_fit(source, tensors, model.state_dict())
    return vocab_size


def tgt_vocab_size(tensors: Mapping[str, Tensor]) -> int | None:
    """Rows of the decoder's word embedding, where there is one."""
    name = "tgt_embedding.word.embedding.weight"
    return len(tensors[name]) if name in tensors else None
