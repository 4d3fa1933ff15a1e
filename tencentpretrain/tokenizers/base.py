"""What every tokenizer is: text to ids and back, with named special tokens."""

from __future__ import annotations

import abc
import functools
import hashlib
import itertools
import json
import os
import re
import shutil
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tencentpretrain.config.tokenizer import TokenizerConfig
from tencentpretrain.errors import ConfigError, DataError
from tencentpretrain.files import write_json
from tencentpretrain.tokenizers.vocabulary import (
    MAP_NAME,
    MAP_NAMES,
    ROLES,
    USUAL_NAMES,
    read_special_tokens,
    write_vocabulary,
)

DESCRIPTION_NAME = "tencentpretrain_tokenizer.json"

Ids = npt.NDArray[np.int32]
Lengths = npt.NDArray[np.int64]


class Tokenizer(abc.ABC):
    """Text to token ids and back. A plug-in gives `kind`, `_encode_plain` (or `_encode_batch`) and `decode`.

    Special tokens written out in a text become their ids, as in Transformers; with `special_tokens=False`
    they are text like any other, as a corpus wants it: an article about '[SEP]' has no separator in it.

    Args:
        tokens: by id; "" where an id has none.
        files: what the vocabulary was read from, by the option that names it.
        options: further options that decide the ids.

    Raises:
        DataError: a map of special tokens that is none.
    """

    kind: ClassVar[str]
    # What `files` are called when saved, by option.
    file_names: ClassVar[Mapping[str, str]] = {"vocab_path": "vocab.txt"}
    # Whether a text to translate, and its translation, begin with [CLS]; else the latter alone, with [PAD].
    starts_with_cls: ClassVar[bool] = True

    pad_id: int | None
    unk_id: int | None
    cls_id: int | None
    sep_id: int | None
    mask_id: int | None

    def __init__(
        self,
        config: TokenizerConfig,
        tokens: list[str],
        files: dict[str, Path],
        options: dict[str, Any] | None = None,
    ) -> None:
        self.tokens = tokens
        self.files = files
        self.options = options or {}
        self.vocab_size = len(tokens)
        self.ids = {token: id for id, token in reversed(list(enumerate(tokens))) if token}
        names, further = self._named_special_tokens(config)
        self.special_tokens = {role: name for role, name in names.items() if name in self.ids}
        self._names = names
        others = {*further, *self._usual_special_tokens()} - {*self.special_tokens.values()}
        self._further = sorted(others & self.ids.keys(), key=self.ids.__getitem__)
        for role in ROLES:
            name = self.special_tokens.get(role)
            setattr(self, f"{role}_id", None if name is None else self.ids[name])
        self.special_ids = frozenset(
            self.ids[name] for name in (*self.special_tokens.values(), *self._further)
        )

    def _named_special_tokens(self, config: TokenizerConfig) -> tuple[dict[str, str], list[str]]:
        """Names by role, and further ones: what the user says, what lies beside the vocabulary, or usual."""
        names: dict[str, str] = {}
        further: list[str] = []
        if config.special_tokens_map_path is not None:
            names, further = read_special_tokens(Path(config.special_tokens_map_path))
        elif self.files:
            directory = next(iter(self.files.values())).parent
            maps = [directory / name for name in MAP_NAMES if (directory / name).is_file()]
            if maps:
                names, further = read_special_tokens(maps[0])
            names = {role: name for role, name in names.items() if name in self.ids}
        for role in ROLES:
            usual = [name for name in self._usual_names(role) if name in self.ids]
            if role not in names and usual:
                names[role] = usual[0]
        return names, further

    def _usual_names(self, role: str) -> tuple[str, ...]:
        """Names the role may have where no map says one; the first that the vocabulary has is taken."""
        return USUAL_NAMES[role]

    def _usual_special_tokens(self) -> tuple[str, ...]:
        """Further tokens that are special where the vocabulary has them, whatever a map says."""
        return ()

    @property
    def sentinel_ids(self) -> list[int]:
        """Ids of <extra_id_0>, <extra_id_1> … (T5); DataError where the vocabulary has none."""
        found: list[int] = []
        while (id := self.ids.get(f"<extra_id_{len(found)}>")) is not None:
            found.append(id)
        if not found:
            where = ", ".join(map(str, self.files.values())) or "the vocabulary"
            raise DataError(
                f"{where} has no sentinel token ('<extra_id_0>', '<extra_id_1>' …), which stands for a "
                "hidden span; use a vocabulary with them, or append them to this one."
            )
        return found

    def require(self, role: str) -> int:
        """Id of the special token with this role; DataError where the vocabulary has none."""
        id: int | None = getattr(self, f"{role}_id")
        if id is None:
            name = self._names.get(role, self._usual_names(role)[0])
            where = ", ".join(map(str, self.files.values())) or f"the vocabulary of tokenizer '{self.kind}'"
            raise DataError(
                f"{where} has no {role} token ('{name}'), which is needed here; use a vocabulary with it, "
                f'or name it in the file given with --special_tokens_map_path ("{role}_token").'
            )
        return id

    def _encode_batch(self, texts: Sequence[str], special_tokens: bool) -> tuple[Ids, Lengths]:
        """As `encode_batch`: special tokens are cut out of the texts, what lies between is encoded alone."""
        if not special_tokens or self._special is None or not self._special.search("\n".join(texts)):
            return self._encode_plain(texts)
        parts = [self._special.split(text) for text in texts]  # plain, special, plain, …, plain
        plain, lengths = self._encode_plain([part for split in parts for part in split[::2]])
        runs = iter(np.split(plain, np.cumsum(lengths)[:-1]))
        rows = []
        for split in parts:
            row = next(runs).tolist()
            for name in split[1::2]:
                row += [self.ids[name], *next(runs).tolist()]
            rows.append(row)
        return flatten(rows)

    def _encode_plain(self, texts: Sequence[str]) -> tuple[Ids, Lengths]:
        """As `encode_batch` for texts without special tokens."""
        raise NotImplementedError

    @functools.cached_property
    def _special(self) -> re.Pattern[str] | None:
        names = sorted((self.tokens[id] for id in self.special_ids), key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, names))})") if names else None

    @abc.abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; spaces that the tokenizer does not keep are set as is usual for it."""

    def encode_batch(self, texts: Sequence[str], special_tokens: bool = True) -> tuple[Ids, Lengths]:
        """Ids of all texts one after the other (int32), and how many each has (int64); none are added.

        Args:
            special_tokens: whether special tokens written out in a text become their ids.

        Raises:
            DataError: a text that is no Unicode (half of a surrogate pair, as JSON escapes can make it).
        """
        try:
            return self._encode_batch(texts, special_tokens)
        except (UnicodeEncodeError, TypeError):  # the latter from the Rust library
            for number, text in enumerate(texts):
                if any("\ud800" <= char <= "\udfff" for char in text):
                    raise DataError(
                        f"text {number} of {len(texts)} holds half of a surrogate pair."
                    ) from None
            raise

    def token_starts(self, texts: Sequence[str]) -> Lengths | None:
        """At which character of `"\\n".join(texts)` each token of `encode_batch(texts, special_tokens=False)`
        starts, ascending; a token that starts inside a character starts where the token before it does.

        None: this tokenizer does not know. `continues_word` is then all there is to find words by.
        """
        return None

    def encode(self, text: str, special_tokens: bool = True) -> list[int]:
        """Ids of one text; see `encode_batch`."""
        ids: list[int] = self.encode_batch([text], special_tokens)[0].tolist()
        return ids

    def tokenize(self, text: str) -> list[str]:
        """Tokens of one text."""
        return [self.tokens[id] for id in self.encode(text)]

    @functools.cached_property
    def continues_word(self) -> npt.NDArray[np.bool_]:
        """[V] whether a token goes on with the word of the token before it; False for special tokens."""
        found = np.fromiter(
            (bool(token) and self._continues(token) for token in self.tokens), bool, self.vocab_size
        )
        found[list(self.special_ids)] = False
        return found

    def _continues(self, token: str) -> bool:
        return False

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hexadecimal; differs where the ids of some text or the meaning of an id differ."""
        special = {name: self.ids[name] for name in (*self.special_tokens.values(), *self._further)}
        identity = [
            self.kind,
            self.options,
            sorted(special.items()),
            sorted(self.special_tokens.items()),
            self.tokens,
        ]
        digest = hashlib.blake2b(json.dumps(identity, sort_keys=True).encode("ascii"), digest_size=16)
        digest.update(self._identity())
        return digest.hexdigest()

    def _identity(self) -> bytes:
        """What decides the ids beside tokens and options."""
        return b""

    def write_files(self, directory: Path, names: Mapping[str, str] | None = None) -> dict[str, str]:
        """Write the files of the vocabulary, and give their names by option.

        Args:
            names: by option, where not ours; a vocabulary is JSON if its name ends so, else a token a line.
        """
        written = {option: (names or {}).get(option, self.file_names[option]) for option in self.files}
        for option, name in written.items():
            self._write_file(option, directory / name)
        return written

    def _write_file(self, option: str, path: Path) -> None:
        if option == "vocab_path":
            write_vocabulary(path, self.tokens)
        else:
            shutil.copyfile(self.files[option], path)

    def save(self, directory: Path) -> None:
        """Write everything that `load_tokenizer(directory)` needs."""
        directory.mkdir(parents=True, exist_ok=True)
        description = {"tokenizer": self.kind, **self.options, **self.write_files(directory)}
        special: dict[str, Any] = {f"{role}_token": name for role, name in self._names.items()}
        write_json(directory / MAP_NAME, special | {"additional_special_tokens": self._further})
        description |= {"special_tokens": self.special_tokens, "fingerprint": self.fingerprint}
        write_json(directory / DESCRIPTION_NAME, description)


def text_starts(texts: Sequence[str]) -> Lengths:
    """Where each text begins in `"\\n".join(texts)`."""
    return np.cumsum([0, *(len(text) + 1 for text in texts)])[:-1]


def flatten(ids: list[list[int]]) -> tuple[Ids, Lengths]:
    """Lists of ids as the arrays of `encode_batch`."""
    lengths = np.array([*map(len, ids)], np.int64)
    packed = struct.pack(f"{lengths.sum()}i", *itertools.chain.from_iterable(ids))  # faster than np.fromiter
    return np.frombuffer(bytearray(packed), np.int32), lengths


def cores() -> int:
    """How many may be used here: `TOKENIZERS_PARALLELISM=false` says one, as for the `tokenizers` library."""
    return 1 if os.environ.get("TOKENIZERS_PARALLELISM") == "false" else os.cpu_count() or 1


def required_path(config: TokenizerConfig, option: str) -> Path:
    """The file an option names; ConfigError where it is not given."""
    value: str | None = getattr(config, option)
    if value is None:
        raise ConfigError(f"--{option} is required with --tokenizer {config.tokenizer}.")
    return Path(value)


def is_cjk(char: str) -> bool:
    """Whether a character is a word of its own in BERT's sense: a CJK ideograph, not kana or hangul."""
    return any(first <= char <= last for first, last in _CJK)


_CJK = (
    ("\u4e00", "\u9fff"), ("\u3400", "\u4dbf"), ("\U00020000", "\U0002a6df"), ("\U0002a700", "\U0002b73f"),
    ("\U0002b740", "\U0002b81f"), ("\U0002b820", "\U0002ceaf"), ("\uf900", "\ufaff"),
    ("\U0002f800", "\U0002fa1f"),
)  # fmt: skip
