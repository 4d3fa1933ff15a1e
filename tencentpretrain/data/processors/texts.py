from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from tencentpretrain.batch import IGNORED
from tencentpretrain.config.data import DataConfig
from tencentpretrain.data.processors.base import Arrays, Processor, fit_pair, pair_rows
from tencentpretrain.data.processors.seq2seq import FIELDS, framed, seq2seq_rows
from tencentpretrain.data.random import Bools, Ints, Purpose
from tencentpretrain.errors import DataError
from tencentpretrain.registry import PROCESSORS

if TYPE_CHECKING:
    from tencentpretrain.data.store import TokenStore
    from tencentpretrain.tokenizers.base import Tokenizer


class TextsProcessor(Processor):
    """Documents of one text or two."""

    roles: ClassVar[tuple[str, ...]] = ("cls", "sep")

    def plan(self, epoch: int) -> Ints:
        return np.arange(self.store.documents_num)

    def texts(self, keys: Ints) -> tuple[tuple[Ints, Ints], tuple[Ints, Ints]]:
        """Start and number of tokens of the first text and of the second, each [B]."""
        store = self.store
        first = store.document_starts(keys)
        start, border = store.sentence_starts(first), store.sentence_ends(first)
        end = store.sentence_ends(store.document_ends(keys) - 1)
        return (start, border - start), (border, end - border)


@PROCESSORS.register("cls")
class ClsProcessor(TextsProcessor):
    """The class of a text or of a pair of texts: [CLS] a [SEP] or [CLS] a [SEP] b [SEP]; the longer one is
    cut.
    """

    name = "cls"
    layout = "labelled"
    readable = ("labelled",)
    provides: ClassVar[tuple[str, ...]] = ("input_ids", "segment_ids", "cls_labels")
    shortest = 5

    def build(self, keys: Ints, epochs: Ints) -> Arrays:
        width = self.config.seq_length
        (start, first), (border, second) = self.texts(keys)
        fitted = fit_pair(first, second, width - 3)
        lengths = np.where(second > 0, fitted[0], np.minimum(first, width - 2)), fitted[1]
        input_ids, segment_ids = pair_rows(self, (start, border), lengths)
        labels = self.store.labels_at(keys)
        return {"input_ids": input_ids, "segment_ids": segment_ids, "cls_labels": labels}


@PROCESSORS.register("cls_mlm")
class ClsMlmProcessor(ClsProcessor):
    """The class of a text or of a pair of texts, and hidden tokens as for `mlm`."""

    name = "cls_mlm"
    provides = (*ClsProcessor.provides, "mlm_labels")
    roles = ("cls", "sep", "mask")
    masks_words = True

    def build(self, keys: Ints, epochs: Ints) -> Arrays:
        arrays = super().build(keys, epochs)
        seen, labels = self._masking(arrays["input_ids"], self.streams(keys, epochs, Purpose.MASK))
        return arrays | {"input_ids": seen, "mlm_labels": labels}


@PROCESSORS.register("prefixlm")
class PrefixLmProcessor(TextsProcessor):
    """The second text from the first one and from its own beginning (Dong et al. 2019, "UniLM", section 2.2):
    [CLS] a [SEP] b [SEP], of which b and its [SEP] are predicted.

    What is too long loses the end of b, [SEP] first, down to half of the row; then the end of a.
    """

    name = "prefixlm"
    second_segment = True
    layout = "pairs"
    readable: ClassVar[tuple[str, ...]] = ("pairs", "instructions")
    provides = ("input_ids", "segment_ids", "lm_labels")
    separated: ClassVar[bool] = True  # whether [SEP] stands between the texts, else the first loses its front

    def __init__(self, store: TokenStore, config: DataConfig, tokenizer: Tokenizer) -> None:
        super().__init__(store, config, tokenizer)
        if "tgt_tokenizer" in store.meta:
            raise DataError(
                f"{store.path}: its two texts have tokenizers of their own, but data processor '{self.name}' "
                "puts both into one row; make it without the --tgt_ options."
            )

    def lengths(self, keys: Ints, epochs: Ints) -> Ints:
        (_, first), (_, second) = self.texts(keys)
        prompt, answer = self._fitted(first, second)
        return 1 + prompt + self.separated + answer

    def _fitted(self, first: Ints, second: Ints) -> tuple[Ints, Ints]:
        """Lengths of the prompt and of the answer with its [SEP], so that they fit into a row."""
        room = self.config.seq_length - 1 - self.separated
        answer = np.minimum(second + 1, np.maximum(room - first, (room + 1) // 2))
        return np.minimum(first, room - answer), answer

    def build(self, keys: Ints, epochs: Ints) -> Arrays:
        columns = np.arange(self.config.seq_length)
        (start, first), (border, second) = (
            (start[:, None], length[:, None]) for start, length in self.texts(keys)
        )
        prompt, answer = self._fitted(first, second)
        begin = 1 + prompt + self.separated  # of the answer
        used = columns < begin + answer
        separator = (columns == begin + second) | (self.separated & (columns == begin - 1))
        inside = used & (columns > 0) & ~separator
        first_seen = start if self.separated else start + first - prompt
        positions = columns + np.where(columns < begin, first_seen - 1, border - begin)
        input_ids = np.where(used, self.tokenizer.require("sep"), self.pad_id)
        input_ids[inside] = self.store.tokens_at(positions[inside])
        input_ids[:, 0] = self.tokenizer.require("cls")
        segment_ids = np.where(used, np.where(columns < begin, 1, 2), 0)
        labels = np.full_like(input_ids, IGNORED)
        labels[:, :-1] = np.where(segment_ids[:, 1:] == 2, input_ids[:, 1:], IGNORED)
        return {"input_ids": input_ids, "segment_ids": segment_ids, "lm_labels": labels}


@PROCESSORS.register("llm_sft")
class LlmSftProcessor(PrefixLmProcessor):
    """An answer from a prompt (Ouyang et al. 2022, section 3.4): [CLS] prompt answer [SEP], of which the
    answer and its [SEP] are predicted. What is too long is cut as for `prefixlm`, but a prompt at its front.
    """

    name = "llm_sft"
    json_corpus = True
    layout = "instructions"
    separated = False


@PROCESSORS.register("mt")
class MtProcessor(TextsProcessor):
    """Translation, or any text from another one (Sutskever et al. 2014): source and target are each
    [CLS] text [SEP]. A source that is too long loses the end of its text, a target its end with [SEP].

    With a tokenizer of models that have it so (Marian), they are text [SEP] and [PAD] text [SEP].
    """

    name = "mt"
    layout = "pairs"
    readable = ("pairs", "instructions")
    provides = FIELDS
    target_length = "tgt_seq_length"
    two_vocabularies = True

    def __init__(self, store: TokenStore, config: DataConfig, tokenizer: Tokenizer) -> None:
        super().__init__(store, config, tokenizer)
        self._tgt_tokenizer = store.tgt_tokenizer if "tgt_tokenizer" in store.meta else tokenizer
        self.check(config, self._tgt_tokenizer)

    @classmethod
    def check(cls, config: DataConfig, tokenizer: Tokenizer) -> None:
        super().check(config, tokenizer)
        if not tokenizer.starts_with_cls:
            tokenizer.require("pad")

    def build(self, keys: Ints, epochs: Ints) -> Arrays:
        (start, first), (border, second) = self.texts(keys)
        width, tgt_width = self.config.seq_length, self.config.tgt_seq_length + 1
        bare = int(not self.tokenizer.starts_with_cls)  # the first column goes
        fitted = np.minimum(first, width + bare - 2)
        source, used = self._framed(start, fitted, width + bare, self.tokenizer)
        target = self._framed(border, second, tgt_width, self._tgt_tokenizer)
        tgt_pad_id = self._tgt_tokenizer.pad_id or 0
        return seq2seq_rows(source[:, bare:], used[:, bare:], *target, self.pad_id, tgt_pad_id)

    def _framed(self, start: Ints, length: Ints, width: int, tokenizer: Tokenizer) -> tuple[Ints, Bools]:
        columns = np.arange(width - 1)
        tokens = np.zeros((start.size, width - 1), np.int64)
        inside = columns < length[:, None]
        tokens[inside] = self.store.tokens_at((start[:, None] + columns)[inside])
        begin = tokenizer.require("cls" if tokenizer.starts_with_cls else "pad")
        return framed(tokens, length, width, begin, tokenizer.require("sep"))
