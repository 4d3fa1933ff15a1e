"""Models of Hugging Face Transformers as files: config.json, weights and tokenizer, read and written."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tencentpretrain.config import ModelConfig, Option, options_of
from tencentpretrain.conversion import sentence_transformers
from tencentpretrain.conversion.engine import Conversion, Family, is_tied, to_ours, to_theirs, without_copies
from tencentpretrain.conversion.maps import FAMILIES, REFUSED, families_of
from tencentpretrain.conversion.steps import PadRows
from tencentpretrain.description import TRAINING_ONLY
from tencentpretrain.errors import ConfigError, WeightsError, weights_of
from tencentpretrain.files import complete_directory, read_json, read_object, write_json
from tencentpretrain.state_dict import WHOLE, read_tensors, renamed, save_weights, strip_wrappers
from tencentpretrain.weights import publish_undescribed

if TYPE_CHECKING:
    from tencentpretrain.tokenizers import Tokenizer

CONFIG = "config.json"
_OPTIONS = options_of(ModelConfig)
LAYERS = {"encoder.transformer": "layers_num", "decoder.transformer_decoder": "decoder_layers_num"}
# Tokenizers that are the same at every family of theirs: Chinese models of all families have BERT's.
_TOKENIZERS: dict[str, tuple[str, Mapping[str, str]]] = {
    "bert": ("BertTokenizer", {"vocab_path": "vocab.txt"}),
    "xlmroberta": ("XLMRobertaTokenizer", {"spm_model_path": "sentencepiece.bpe.model"}),
    "hfpretrained": ("PreTrainedTokenizerFast", {"vocab_path": "tokenizer.json"}),
}
_TOKENIZER_FILES = (
    "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model", "tokenizer.json",
)  # fmt: skip
WRITTEN_BY = {"written_by": "tencentpretrain"}  # in config.json: what `write` may replace is its own work
_WRITTEN = re.compile(
    r"(generation_)?config\.json|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
    r"|vocab\.(txt|json)|merges\.txt|tokenizer\.json|.+\.spm|.+\.model|tokenizer_config\.json|special_tokens_map\.json"
    r"|modules\.json|sentence_bert_config\.json|1_Pooling|2_Normalize"
)


# Options that shape no network a family has: of training, of targets, of two streams.
_NEUTRAL = TRAINING_ONLY | {
    "target", "max_seq_length", "stream_0", "stream_1", "remove_stream_layernorm",
}  # fmt: skip
# Options that shape the network only with one of these parts.
_CONDITIONAL = {
    "has_lmtarget_bias": {"lm"}, "scale_tied_output": {"lm"}, "pooling": {"sp", "classification"},
}  # fmt: skip
_MALFORMED = (TypeError, ValueError, AttributeError, KeyError, IndexError, ArithmeticError)
_HEADS_WITH_LABELS = ("classification", "token_classification")
_MOST_LABELS = 10**6


@dataclasses.dataclass(frozen=True)
class TheirModel:
    """A model of another library that was read.

    Attributes:
        tensors: under our names.
        values: our configuration values; without a configuration only those that the tensors show.
        parts: targets whose tensors are all there.
        ignored: names of theirs that carry nothing for us.
        notes: what a user should know, a line each.
        has_config: whether its configuration is known.
        labels: names of the classes of a fine-tuned model.
        token_ids: ids of special tokens, under their names in config.json.
    """

    family: Family
    tensors: Mapping[str, Tensor]
    values: dict[str, Any]
    parts: tuple[str, ...]
    ignored: list[str]
    notes: list[str]
    has_config: bool
    labels: list[str] | None = None
    token_ids: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class OurModel:
    """Weights of ours, and what is known about them.

    Attributes:
        tensors: under our names.
        config: not needed for a file.
        labels: names of the classes of a fine-tuned model.
        token_ids: of special tokens, where a source of theirs said them; a tokenizer knows better.
        known: configuration values, where there is no configuration.
        sentences: what makes a directory one of sentence-transformers, as its `write` has it; a file has the
            names of the bare encoder then.
    """

    tensors: Mapping[str, Tensor]
    config: ModelConfig | None = None
    tokenizer: Tokenizer | None = None
    labels: Sequence[str] | None = None
    token_ids: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    known: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sentences: Mapping[str, Any] | None = None


def is_model_directory(path: Path) -> bool:
    """Whether a directory has a config.json that names a `model_type`; WeightsError where it is no name."""
    if not (path / CONFIG).is_file():
        return False
    config = read_object(path / CONFIG)
    if "model_type" not in config:
        return False
    if not isinstance(config["model_type"], str):
        raise WeightsError(f"{path / CONFIG}: `model_type` is {config['model_type']!r}, expected a name.")
    return True


def is_file_name(path: Path) -> bool:
    """Whether an output path names a weights file rather than a directory."""
    return path.suffix in (".bin", ".pt", ".safetensors")


def read(
    path: Path,
    tensors: Mapping[str, Tensor] | None = None,
    parts: Sequence[str] | None = None,
    wanted: Family | None = None,
    known: Mapping[str, Any] | None = None,
) -> TheirModel:
    """A model directory, or a weights file (with the config.json beside it if it is named as in one).

    Args:
        tensors: the file's, where they have been read already.
        parts: the targets wanted; default: all that are there.
        wanted: the family where the file fits several, such as RoBERTa and XLM-RoBERTa, and the head it has;
            default: the first, and, with all parts, the head that config.json or the tensors tell.
        known: our configuration values where there is no config.json that says them.

    Raises:
        WeightsError: no known family, a configuration that is not supported, tensors that are not all there.
    """
    home = path if path.is_dir() else path.parent
    has_config = (path.is_dir() or path.name in WHOLE) and is_model_directory(home)
    config = read_json(home / CONFIG) if has_config else {}
    theirs = strip_wrappers(read_tensors(path)) if tensors is None else tensors
    family = _find_family(path, theirs, config, wanted)
    if wanted is not None and wanted.head is not None and wanted.name == family.name:
        family = wanted
    elif parts is None:
        told = bool(config.get("architectures"))
        family = _with_head(family, config) if told else family.with_head_in(theirs, ours=False)
    values = our_values(family, config, home / CONFIG) if has_config else dict(known or {})
    with weights_of(path):
        converted = to_ours(family, theirs, values, parts)
    for stack, layers in converted.layers.items():
        name = LAYERS[stack]
        if values.setdefault(name, layers) != layers:
            said = home / CONFIG if has_config else "the configuration"
            raise WeightsError(f"{said} says {values[name]} layers of {stack}, but {path} has {layers}.")
    shared = _what_is_shared(family, theirs, values)
    notes = [*converted.notes, *_left_out(family, theirs)]
    labels = _labels(family, config)
    if has_config and labels is not None and converted.parts:
        outputs = len(converted.tensors[family.rules[-1].names(ours=True)[0]])
        if len(labels) != outputs:
            raise WeightsError(
                f"{home / CONFIG} has {len(labels)} labels (`id2label`, `num_labels`), but {path} has "
                f"{outputs} outputs; correct the one that is wrong."
            )
    problem = config.get("problem_type")
    if family.head == "classification" and problem not in (None, "single_label_classification"):
        notes.append(
            f"`problem_type` is {problem} in {home / CONFIG} and is not kept: classifiers here, and what "
            "they are converted to, choose one class of several"
        )
    if family.head is not None and not (converted.parts or converted.incomplete):
        notes.append(f"there is no {family.head} head, which {home / CONFIG} names")
    if values.get("tie_weights", False) and not shared["tie_weights"]:
        notes.append(
            f"{home / CONFIG} says that the word embeddings are tied, but they differ; taken as untied"
        )
    return TheirModel(
        family,
        converted.tensors,
        values | shared,
        converted.parts,
        converted.ignored,
        notes,
        has_config or known is not None,
        labels,
        _token_ids(family, config),
    )


def _left_out(family: Family, theirs: Mapping[str, Tensor]) -> Iterator[str]:
    """Rows with values that ours has no place for, a line for each tensor."""
    for name in theirs:
        place = family.place(family.canonical(name), ours=False)
        for step in () if place is None else family.rules[place[0]].steps:
            if isinstance(step, PadRows) and (rows := step.left_out(theirs[name])):
                yield (
                    f"rows {' and '.join(map(str, rows))} of {name}, which no text here reads, are left out; "
                    "on the way back they are zeros"
                )


def _with_head(family: Family, config: Mapping[str, Any]) -> Family:
    """The family with the head that the configuration names, if it names one."""
    names = config.get("architectures") or ()
    if not isinstance(names, list | tuple):
        raise WeightsError(f"{CONFIG}: `architectures` is {names}, expected a list of names.")
    for head in family.heads:
        if head.architecture in names:
            return family.with_head(head.name)
    return family


def _labels(family: Family, config: Mapping[str, Any]) -> list[str] | None:
    """Names of the classes, where the family has a head with classes."""
    if family.head not in _HEADS_WITH_LABELS:
        return None
    names, count = config.get("id2label"), config.get("num_labels", 2)
    if not names:
        if type(count) is not int or not 1 <= count <= _MOST_LABELS:
            raise WeightsError(f"{CONFIG}: `num_labels` is {count!r}, expected 1 to {_MOST_LABELS}.")
        return _unnamed(count)
    numbers = [str(number) for number in range(len(names) if isinstance(names, dict) else 0)]
    if (
        not numbers
        or {*numbers} != {*names}
        or not all(isinstance(name, str | int) for name in names.values())
    ):
        raise WeightsError(f"{CONFIG}: `id2label` must give each number from 0 on a name, but is {names!r}.")
    return [str(names[number]) for number in numbers]


def _token_ids(family: Family, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the configuration says of special tokens; several may end a text."""
    ids = {name: config[name] for name in family.token_ids if config.get(name) is not None}
    for name, value in ids.items():
        several = value if isinstance(value, list) and name == "eos_token_id" else [value]
        if not all(type(id) is int for id in several):
            raise WeightsError(f"{CONFIG}: `{name}` is {value!r}, expected the id of a token.")
    return ids


def _unnamed(count: int) -> list[str]:
    """What classes without names are called at theirs."""
    return [f"LABEL_{number}" for number in range(count)]


def _what_is_shared(
    family: Family, theirs: Mapping[str, Tensor], values: Mapping[str, Any]
) -> dict[str, Any]:
    """Our options that say so, from the tensors; what the configuration calls untied is so even if equal."""
    full = renamed(theirs, {family.canonical(name): name for name in theirs})
    shared = {"tie_weights": is_tied(family, full) and values.get("tie_weights") is not False}
    if any(pair.always for pair in family.shared):
        shared["share_embedding"] = is_tied(family, full, always=True)
    return shared


def _find_family(
    path: Path, theirs: Mapping[str, Tensor], config: Mapping[str, Any], wanted: Family | None = None
) -> Family:
    """The family of their tensors (where there are any) and their configuration (likewise)."""
    model_type = config.get("model_type")
    candidates = families_of(theirs, model_type)
    if candidates:
        fitting = [family for family in candidates if not _read_settings(family, config)[1]] or candidates
        return next((one for one in fitting if wanted and one.name == wanted.name), fitting[0])
    if model_type in REFUSED:
        raise WeightsError(f"{path} is a {model_type} model: {REFUSED[model_type]}.")
    if any(name.startswith("embedding.word") for name in theirs):
        raise WeightsError(f"{path} is already in this toolkit's format; it needs no conversion.")
    what = (
        f"of model_type '{model_type}'"
        if model_type
        else f"with tensors such as '{next(iter(theirs), 'none')}'"
    )
    raise WeightsError(
        f"{path}: no conversion is known for a model {what}; known: "
        f"{', '.join(dict.fromkeys(name for family in FAMILIES for name in family.known_as))}."
    )


def our_values(family: Family, config: Mapping[str, Any], origin: Path) -> dict[str, Any]:
    """Our configuration values from their config.json.

    Raises:
        WeightsError: with every value that our model cannot express, or that is malformed.
    """
    values, problems = _read_settings(family, config)
    if config.get("quantization_config"):
        problems = [*problems, "`quantization_config`: quantized weights are not read, dequantize them"]
    if problems:
        raise WeightsError(f"{origin}: {'; '.join(problems)}.")
    values = _fixed(family) | values | sentence_transformers.settings(origin.parent)
    _check_together(family, values, origin)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _check_together(family: Family, values: Mapping[str, Any], origin: Path) -> None:
    """Refuse values that contradict each other, under the names that their file has for them."""
    known = {name: values[name] for name in _OPTIONS if values.get(name) is not None}
    try:
        ModelConfig(**known | {"target": ()})
    except ConfigError as error:
        named = {
            name: one.theirs for one in family.settings for name in one.options if one.theirs is not None
        }
        problems = [
            re.sub(r"`(\w+)`", lambda found: f"`{named.get(found[1], found[1])}`", problem)
            for problem in error.problems
        ]
        raise WeightsError(f"{origin}: {' '.join(problems)}") from None


def _read_settings(family: Family, config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Our values that their configuration gives, and what of it our model cannot express."""
    problems = [
        f"`{name}` is {config[name]}, only {value} is supported"
        for name, value in family.fixed_theirs.items()
        if config.get(name, value) != value
    ]
    values: dict[str, Any] = {}
    for setting in family.settings:
        try:
            value = setting.to_ours(config)
            values = {name: _decoded(_OPTIONS[name], value) for name in setting.options} | values
        except WeightsError as error:
            problems.append(str(error))
        except _MALFORMED as error:
            problems.append(f"`{setting.theirs or ' '.join(setting.options)}` cannot be read ({error})")
    return values, list(dict.fromkeys(problems))


def _decoded(option: Option, value: Any) -> Any:
    """A value of ours as the option holds it; None: it is not known yet. ValueError where it is malformed."""
    if value is None:
        return None
    if isinstance(value, str) and option.kind in (int, float):  # which a command line has
        raise ValueError(f"expected {option.expected}, but is {value!r} instead")
    return option.decode(value)


def _fixed(family: Family) -> dict[str, Any]:
    """What our options must be that no setting names and that shape every network."""
    mapped = {name for setting in family.settings for name in setting.options}
    return {
        name: option.default
        for name, option in _OPTIONS.items()
        if name not in mapped and name not in _NEUTRAL and name not in _CONDITIONAL
    } | dict(family.fixed_ours)


def describe(directory: Path) -> dict[str, Any]:
    """What config.json and the tokenizer files say, as a weights description of ours (`description.py`).

    Raises:
        WeightsError: a family or a value that is not supported.
    """
    config = read_json(directory / CONFIG)
    family = _with_head(_find_family(directory, {}, config), config)
    values = our_values(family, config, directory / CONFIG)
    if None in (values["tie_weights"], values.get("share_embedding", False)):  # only the tensors say
        values |= _what_is_shared(family, strip_wrappers(read_tensors(directory)), values)
    for parts, name in family.architectures.items():
        if parts and family.head is None and name in (config.get("architectures") or ()):
            values["target"] = list(parts)
    values["family"] = family.name
    labels = _labels(family, config)
    if labels is not None:
        values |= {"labels": labels, "labels_num": len(labels)}
    for name in ("vocab_size", "decoder_vocab_size"):
        if config.get(name) is not None and (type(config[name]) is not int or not 1 <= config[name] < 2**31):
            raise WeightsError(
                f"{directory / CONFIG}: `{name}` is {config[name]!r}, expected a number of tokens."
            )
    if config.get("vocab_size") is not None:
        values["vocab_size"] = config["vocab_size"]
    if config.get("decoder_vocab_size") not in (None, values.get("vocab_size")):
        values["tgt_vocab_size"] = config["decoder_vocab_size"]
    if has_tokenizer(directory):
        values["tokenizer_path"] = str(directory.resolve())
    return values


def has_tokenizer(directory: Path) -> bool:
    return any((directory / name).is_file() for name in _TOKENIZER_FILES)


def their_config(family: Family, config: ModelConfig, ours: OurModel, parts: Sequence[str]) -> dict[str, Any]:
    """Content of config.json.

    Args:
        config: as it is there; what weights share it says by itself.

    Raises:
        WeightsError: with every option of ours that their model cannot express.
    """
    problems = list(_misfits(family, config, parts))
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
        roles = {name: getattr(ours.tokenizer, f"{role}_id") for name, role in family.token_ids.items()}
        known = {name: number for name, number in roles.items() if number is not None}
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


def departures(family: Family, config: ModelConfig) -> list[str]:
    """What their model has otherwise than ours, though it is converted; a line each."""
    return [
        f"`{setting.options[0]}` is {value} here and always {setting.default} there: outputs differ a little"
        for setting in family.settings
        if setting.fixed and (value := getattr(config, setting.options[0])) != setting.default
    ]


def _misfits(family: Family, config: ModelConfig, parts: Sequence[str]) -> Iterator[str]:
    """Every option of ours that has a value their model cannot have."""
    mapped = {name for setting in family.settings for name in setting.options}
    expected = _fixed(family)
    for name, shaping in _CONDITIONAL.items():
        if name not in mapped and shaping & set(parts):
            expected.setdefault(name, _OPTIONS[name].default)
    implied = {
        "attention_head_size": config.hidden_size // config.heads_num,
        "local_kv_heads_num": config.heads_num,
        "decoder_layers_num": config.layers_num,
    }
    for name, value in expected.items():
        given = getattr(config, name)
        if given != value and not (value is None and given == implied.get(name)):
            yield f"`{name}` is {_words(given)}, only {_words(value)} is possible"


def as_theirs(family: Family, ours: OurModel, parts: Sequence[str]) -> tuple[Conversion, dict[str, Any]]:
    """Our tensors under their names, and config.json (empty where our configuration is not known).

    Raises:
        WeightsError: the model is none of this family.
    """
    values = ours.known if ours.config is None else dataclasses.asdict(ours.config)
    done = to_theirs(family, ours.tensors, values, parts)
    if ours.config is None:
        return done, {}
    shared = _what_is_shared(family, done.tensors, {})
    described = dataclasses.replace(ours.config, **shared)
    return done, their_config(family, described, ours, done.parts)


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
    if family.head in _HEADS_WITH_LABELS and done.parts:
        outputs = len(ours.tensors[family.rules[-1].names(ours=True)[0]])
        names = list(ours.labels or _unnamed(outputs))
        if len(names) != outputs:
            raise WeightsError(f"there are {len(names)} labels, but {outputs} outputs.")
        values["id2label"] = dict(enumerate(names))
        values["label2id"] = {name: number for number, name in enumerate(names)}
    with complete_directory(path) as temporary:
        write_json(temporary / CONFIG, values | WRITTEN_BY)
        if "lm" in done.parts:
            ids = {name: values[name] for name in family.token_ids if values.get(name) is not None}
            write_json(temporary / "generation_config.json", ids)
        tokenizer = ours.tokenizer
        if tokenizer is not None and (named := their_tokenizer(family, tokenizer)) is not None:
            _write_tokenizer(temporary, family, ours.config, tokenizer, *named)
        _write_shards(theirs, temporary, max_shard_size)
        if ours.sentences is not None:
            sentence_transformers.write(temporary, ours.config.hidden_size, ours.sentences)
    return done.ignored, notes


def _lacks_pooler(family: Family, ours: Mapping[str, Tensor]) -> bool:
    pooler = "target.sp.linear_1.weight"
    return family.place(pooler, ours=True) is not None and pooler not in ours


def their_tokenizer(family: Family, tokenizer: Tokenizer) -> tuple[str, Mapping[str, str]] | None:
    """Their class that gives the same ids, and what its files are called, by our option; None: no such."""
    if tokenizer.kind in _TOKENIZERS:
        return _TOKENIZERS[tokenizer.kind]
    usual = family.tokenizer_class, family.tokenizer_files
    if usual[1].keys() == tokenizer.files.keys() and usual not in _TOKENIZERS.values():
        return usual
    # Of a family whose own class splits texts in another way: what a file describes is read as it is.
    return _TOKENIZERS["hfpretrained"] if tokenizer.kind == "bpe" else None


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


def _write_tokenizer(
    directory: Path,
    family: Family,
    config: ModelConfig,
    tokenizer: Tokenizer,
    tokenizer_class: str,
    names: Mapping[str, str],
) -> None:
    tokenizer.write_files(directory, names)
    special = {f"{role}_token": token for role, token in tokenizer.special_tokens.items()}
    for name, role in family.token_ids.items():
        if name in ("bos_token_id", "eos_token_id") and role in tokenizer.special_tokens:
            special[name.removesuffix("_id")] = tokenizer.special_tokens[role]
    write_json(directory / "special_tokens_map.json", special)
    write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": tokenizer_class,
            "model_max_length": config.max_seq_length - family.unused_positions,
        }
        | (dict(family.tokenizer_options) if tokenizer_class == family.tokenizer_class else {})
        | tokenizer.options
        | special,
    )


def _words(value: Any) -> str:
    return " ".join(value) if isinstance(value, tuple) else str(value)
