"""A model of ours written as one of Transformers: config.json, weights and tokenizer."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tencentpretrain.config import ModelConfig
from tencentpretrain.conversion import sentence_transformers
from tencentpretrain.conversion.engine import Conversion, to_theirs, without_copies
from tencentpretrain.conversion.family import Family
from tencentpretrain.conversion.huggingface.common import (
    CONDITIONAL,
    CONFIG,
    HEADS_WITH_LABELS,
    OPTIONS,
    fixed_options,
    unnamed,
    what_is_shared,
)
from tencentpretrain.conversion.huggingface.tokenizers import their_tokenizer, write_tokenizer
from tencentpretrain.errors import ConfigError, WeightsError
from tencentpretrain.files import complete_directory, read_json, write_json
from tencentpretrain.state_dict import renamed, save_weights
from tencentpretrain.weights import publish_undescribed

if TYPE_CHECKING:
    from tencentpretrain.tokenizers import Tokenizer

WRITTEN_BY = {"written_by": "tencentpretrain"}  # in config.json: what `write` may replace is its own work
_WRITTEN = re.compile(
    r"(generation_)?config\.json|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
    r"|(target_)?vocab\.json|vocab\.txt|merges\.txt|tokenizer\.json|.+\.spm|.+\.model|tokenizer_config\.json|special_tokens_map\.json"
    r"|modules\.json|sentence_bert_config\.json|1_Pooling|2_Normalize"
)


@dataclasses.dataclass(frozen=True)
class OurModel:
    """Weights of ours, and what is known about them.

    Attributes:
        tensors: under our names.
        config: not needed for a file.
        tgt_tokenizer: of the decoder's side, where it is another one.
        labels: names of the classes of a fine-tuned model.
        token_ids: of special tokens, where a source of theirs said them; tokenizers know better.
        known: configuration values, where there is no configuration.
        sentences: what makes a directory one of sentence-transformers, as its `write` has it; a file has the
            names of the bare encoder then.
    """

    tensors: Mapping[str, Tensor]
    config: ModelConfig | None = None
    tokenizer: Tokenizer | None = None
    tgt_tokenizer: Tokenizer | None = None
    labels: Sequence[str] | None = None
    token_ids: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    known: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sentences: Mapping[str, Any] | None = None


def is_file_name(path: Path) -> bool:
    """Whether an output path names a weights file rather than a directory."""
    return path.suffix in (".bin", ".pt", ".safetensors")


def check_replaceable(path: Path) -> None:
    """Refuse to write a directory over anything that `write` did not make.

    Raises:
        ConfigError: `path` is a file, or a directory that holds something else.
    """
    if not path.exists():
        return
    names = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    others = [name for name in names if not _WRITTEN.fullmatch(name)]
    if path.is_dir() and not others and (not names or (CONFIG in names and _is_own(path))):
        return
    if names:
        what = f"is a directory that holds '{others[0]}'" if others else "was not written by this program"
    else:
        what = "is a file"
    raise ConfigError(
        f"--output_model_path: {path} {what}, so it is not overwritten; a model of theirs is a directory of "
        "its own (or a file, if its name ends in .bin, .pt or .safetensors)."
    )


def _is_own(directory: Path) -> bool:
    config = read_json(directory / CONFIG)
    return isinstance(config, dict) and WRITTEN_BY.items() <= config.items()


def write(
    path: Path, family: Family, ours: OurModel, parts: Sequence[str], max_shard_size: float = 5e9
) -> tuple[list[str], list[str]]:
    """A model of ours as one of theirs: a directory, or the weights alone where `path` is named like a file.

    Args:
        parts: the targets wanted, of those that are there.
        max_shard_size: of a file of a directory, in bytes; a larger model is several.

    Returns:
        Names of ours that were left out, and what a user should know, a line each.

    Raises:
        WeightsError: the model is none of theirs.
    """
    done, values = as_theirs(family, ours, parts)
    tokens = family.head == "token_classification" and bool(done.parts)
    if tokens and ours.labels is None and len(ours.tensors["output_layer.bias"]) == 1:
        raise WeightsError(
            "`output_layer` has one output, as of multiple choice, and is not converted: it reads the state "
            "of the first token, while their classes for multiple choice have a pooler in between."
        )
    notes = []
    if ours.config is not None and not done.parts and _lacks_pooler(family, ours.tensors):
        notes.append("there is no pooler, so from_pretrained draws theirs at random")
    if is_file_name(path):
        bare = "" if ours.sentences is None else family.prefix
        tensors = renamed(done.tensors, {name.removeprefix(bare): name for name in done.tensors})
        return done.ignored, [*notes, *publish_undescribed(tensors, path)]
    assert ours.config is not None
    theirs = without_copies(family, done.tensors)
    values |= {name: len(done.tensors[tensor]) for name, tensor in family.sizes.items()}
    if family.head in HEADS_WITH_LABELS and done.parts:
        outputs = len(ours.tensors[family.rules[-1].names(ours=True)[0]])
        names = list(ours.labels or unnamed(outputs))
        if len(names) != outputs:
            raise WeightsError(f"there are {len(names)} labels, but {outputs} outputs.")
        values["id2label"] = dict(enumerate(names))
        values["label2id"] = {name: number for number, name in enumerate(names)}
    with complete_directory(path) as temporary:
        write_json(temporary / CONFIG, values | WRITTEN_BY)
        if "lm" in done.parts:
            ids = {name: values[name] for name in family.token_ids if values.get(name) is not None}
            write_json(temporary / "generation_config.json", ids)
        tokenizer, target = ours.tokenizer, ours.tgt_tokenizer
        if tokenizer is not None and (named := their_tokenizer(family, tokenizer, target)) is not None:
            write_tokenizer(temporary, family, ours.config, tokenizer, *named, target)
        _write_shards(theirs, temporary, max_shard_size)
        if ours.sentences is not None:
            sentence_transformers.write(temporary, ours.config.hidden_size, ours.sentences)
    return done.ignored, notes


def _lacks_pooler(family: Family, ours: Mapping[str, Tensor]) -> bool:
    pooler = "target.sp.linear_1.weight"
    return family.place(pooler, ours=True) is not None and pooler not in ours


def _write_shards(tensors: Mapping[str, Tensor], directory: Path, max_size: float) -> None:
    """model.safetensors, or several files with an index; no more than one file's tensors are held."""
    shards: list[list[str]] = [[]]
    size = total = 0
    for name in tensors:
        added = tensors[name].nbytes
        if shards[-1] and size + added > max_size:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size, total = size + added, total + added
    if len(shards) == 1:
        return save_weights(tensors, directory / "model.safetensors")
    places: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_weights(renamed(tensors, {name: name for name in names}), directory / file)
        places |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    write_json(directory / "model.safetensors.index.json", index)


def as_theirs(family: Family, ours: OurModel, parts: Sequence[str]) -> tuple[Conversion, dict[str, Any]]:
    """Our tensors under their names, and config.json (empty where our configuration is not known).

    Raises:
        WeightsError: the model is none of this family.
    """
    values = ours.known if ours.config is None else dataclasses.asdict(ours.config)
    done = to_theirs(family, ours.tensors, values, parts)
    if ours.config is None:
        return done, {}
    shared = what_is_shared(family, done.tensors, {})
    described = dataclasses.replace(ours.config, **shared)
    return done, their_config(family, described, ours, done.parts)


def their_config(family: Family, config: ModelConfig, ours: OurModel, parts: Sequence[str]) -> dict[str, Any]:
    """Content of config.json.

    Args:
        config: as it is there; what weights share it says by itself.

    Raises:
        WeightsError: with every option of ours that their model cannot express.
    """
    problems = list(misfits(family, config, parts))
    architecture = family.architectures.get(tuple(parts))
    if architecture is None:
        problems.append(f"there is no class for the targets {' '.join(parts)}")
    values: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": family.known_as[0],
        **family.fixed_theirs,
    }
    for setting in family.settings:
        try:
            value = setting.to_theirs(config)
        except WeightsError as error:
            problems.append(str(error))
            continue
        if setting.theirs is not None:
            values[setting.theirs] = value
    values |= {name: id for name, id in ours.token_ids.items() if name in family.token_ids}
    if ours.tokenizer is not None:
        known = _special_ids(family, ours.tokenizer, ours.tgt_tokenizer or ours.tokenizer, ours.token_ids)
        problems += [
            f"`{name}` is {number} in the tokenizer, only {family.fixed_theirs[name]} is possible"
            for name, number in known.items()
            if family.fixed_theirs.get(name, number) != number
        ]
        values |= known
    if problems:
        raise WeightsError(f"not a {family.name} model of Hugging Face: {'; '.join(problems)}.")
    word = ours.tensors["embedding.word.embedding.weight"]
    return values | {"vocab_size": word.shape[0], "dtype": str(word.dtype).removeprefix("torch.")}


def _special_ids(
    family: Family, source: Tokenizer, target: Tokenizer, said: Mapping[str, Any]
) -> dict[str, int]:
    """Ids of special tokens by their names in config.json, which has one of each for both sides.

    Args:
        said: by a source of theirs, which decides where the sides differ. Else they are the decoder's, which
            begins and ends with them, but for padding: MarianTokenizer pads both sides with the source's.
    """
    ids = {}
    for name, role in family.token_ids.items():
        sides = [getattr(tokenizer, f"{role}_id") for tokenizer in (source, target)]
        usual = sides[0] if name == "pad_token_id" else sides[1]
        number = theirs if (theirs := said.get(name)) is not None and theirs in sides else usual
        if number is not None:
            ids[name] = number
    return ids


def departures(family: Family, config: ModelConfig) -> list[str]:
    """What their model has otherwise than ours, though it is converted; a line each."""
    return [
        f"`{setting.options[0]}` is {value} here and always {setting.default} there: outputs differ a little"
        for setting in family.settings
        if setting.fixed and (value := getattr(config, setting.options[0])) != setting.default
    ]


def misfits(family: Family, config: ModelConfig, parts: Sequence[str]) -> Iterator[str]:
    """Every option of ours that has a value their model cannot have."""
    mapped = {name for setting in family.settings for name in setting.options}
    expected = fixed_options(family)
    for name, shaping in CONDITIONAL.items():
        if name not in mapped and shaping & set(parts):
            expected.setdefault(name, OPTIONS[name].default)
    implied = {
        "attention_head_size": config.hidden_size // config.heads_num,
        "local_kv_heads_num": config.heads_num,
        "decoder_layers_num": config.layers_num,
    }
    for name, value in expected.items():
        given = getattr(config, name)
        if given != value and not (value is None and given == implied.get(name)):
            yield f"`{name}` is {_words(given)}, only {_words(value)} is possible"


def _words(value: Any) -> str:
    return " ".join(value) if isinstance(value, tuple) else str(value)
