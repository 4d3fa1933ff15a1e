"""Vectors of sentences, as they are or whitened."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tencentpretrain.batch import Batch
from tencentpretrain.config import (
    FeaturesConfig,
    InferConfig,
    ModelConfig,
    Options,
    RunConfig,
    TokenizerConfig,
)
from tencentpretrain.errors import ConfigError, WeightsError
from tencentpretrain.files import complete_file
from tencentpretrain.layers.pooling import pool
from tencentpretrain.model import fields_read, length_problems
from tencentpretrain.tasks.base import TaskModel, TaskOutput, stacked
from tencentpretrain.tasks.examples import Examples, TextExamples
from tencentpretrain.tasks.finetuning import predict
from tencentpretrain.tasks.start import Start, check_paths, start_from
from tencentpretrain.tokenizers import Tokenizer
from tencentpretrain.tokenizers.vocabulary import read_lines
from tencentpretrain.training.engines import SingleEngine
from tencentpretrain.training.report import start_logging
from tencentpretrain.weights import load_weights

log = logging.getLogger("tencentpretrain")


class Features(TaskModel):
    """States of the encoder, of a dual model's first one, pooled into one vector a row: [B, D] in fp32."""

    def __init__(self, config: ModelConfig, vocab_size: int, pooling: str) -> None:
        super().__init__(config, vocab_size)
        self.pooling = pooling

    def forward(self, batch: Batch) -> TaskOutput:
        batch = dict(batch)
        if self.config.is_dual:
            dual: Any = self.embedding.get_submodule("dual")
            hidden, encoder = dual.stream_0_layer_norm(dual.embedding_0(batch)), self.encoder.encoder_0
        else:
            hidden, encoder = self.embedding(batch), self.encoder
        hidden = encoder(hidden, batch, 1 if self.pooling == "first" else None)
        where = batch.get("pooled_positions", batch["segment_ids"])
        return TaskOutput({}, {}, {"features": pool(hidden, where, self.pooling).float()})


def start_features(options: Options) -> Start:
    """`start_from` for a model whose vectors are wanted; it says how long its inputs are as well."""
    start = start_from(options, "load_model_path")
    if "seq_length" in start.description:
        options.add_layer(f"{start.path}.json", {"seq_length": start.description["seq_length"]})
    return start


class Extractor:
    """A model with all its weights, which turns examples to vectors.

    Args:
        seq_length: longest input, in tokens.
        pooling: how a row becomes a vector.

    Raises:
        ConfigError: the model reads more than text, or contradicts what lies beside the weights.
        WeightsError: the weights do not fit, or leave a part of embedding or encoder at random.
    """

    def __init__(
        self,
        start: Start,
        config: ModelConfig,
        tokenizer: Tokenizer,
        seq_length: int,
        precision: str,
        pooling: str,
    ) -> None:
        stream = config.streams[0] if config.is_dual else config
        problems = [
            f"{reader} reads '{field}', which a text does not have."
            for field, reader in fields_read(stream)
            if reader.startswith(("embedding ", "encoder ")) and field not in ("input_ids", "segment_ids")
        ]
        problems += length_problems(stream, seq_length)
        if problems:
            raise ConfigError(problems)
        start.check(config, tokenizer)
        assert start.path is not None
        model = Features(config, start.vocab_size(tokenizer), pooling)
        report = load_weights(model, start.path)
        absent = [name for name in report.missing if name.startswith(("embedding.", "encoder."))]
        if absent:
            raise WeightsError(
                f"{start.path} has no {', '.join(absent[:3])}, without which vectors mean nothing; the "
                "configuration must be the one the weights were made with."
            )
        self.engine = SingleEngine(precision)
        self.engine.prepare(model)
        for line in (*self.engine.decisions(), *str(report).split("\n")):
            log.info(line)

    def vectors(self, examples: Examples, batch_size: int) -> Tensor:
        """[n, D], in the order of the examples."""
        return torch.from_numpy(stacked(predict(self.engine, examples, batch_size)[0]["features"]))


def whiten(vectors: Tensor, size: int) -> Tensor:
    """Vectors [n, D] as [n, size], uncorrelated and of equal variance, then of length 1 (Su et al. 2021, §3).

    The directions kept are those of largest variance.

    Raises:
        ConfigError: the vectors have fewer directions in which they differ.
    """
    centred = vectors.double() - vectors.double().mean(0)
    variances, directions = torch.linalg.eigh(centred.T @ centred / max(len(vectors) - 1, 1))
    tiny = variances[-1] * len(variances) * torch.finfo(variances.dtype).eps
    rank = int((variances > tiny).sum())
    if size > rank:
        raise ConfigError(
            f"`whitening_size` is {size}, but the {len(vectors)} vectors differ in {rank} directions only; "
            "give a smaller one, or more sentences."
        )
    kernel = (directions * variances.rsqrt())[:, -size:].flip(1)
    return F.normalize(centred @ kernel).float()


def extract_features(arguments: Sequence[str] | None = None) -> None:
    """The program that writes a tensor [lines of test_path, D] of features.

    Args:
        arguments: the command line without the program's name; default: the process's.

    Raises:
        UserError: options, weights or data are wrong; then nothing is written.
    """
    concerns = (ModelConfig, TokenizerConfig, InferConfig, FeaturesConfig)
    options = Options(
        "Write vectors of sentences, one a line of --test_path, as a tensor of torch.save.",
        *concerns,
        arguments=arguments,
    )
    start = start_features(options)
    model_config, tokenizer_config, config, features = options.build(*concerns)
    output = check_paths(options, "prediction_path", ("test_path",))
    start_logging(RunConfig())
    tokenizer = start.tokenizer(tokenizer_config)
    texts = read_lines(Path(config.test_path), "sentences, one a line")
    examples = TextExamples(tokenizer, texts, None, config.seq_length)
    extractor = Extractor(
        start, model_config, tokenizer, config.seq_length, config.precision, model_config.pooling
    )
    vectors = extractor.vectors(examples, config.batch_size)
    if features.normalize_features:
        vectors = F.normalize(vectors)
    if features.whitening_size is not None:
        vectors = whiten(vectors, features.whitening_size)
    with complete_file(output) as temporary:
        torch.save(vectors, temporary)
    log.info(f"{len(vectors)} vectors of {vectors.shape[1]} numbers: {output}")
