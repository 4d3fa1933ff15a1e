"""How a run is carried out: pre-training, fine-tuning, inference."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from tencentpretrain.config.options import option
from tencentpretrain.config.shared import (
    CONFIG_PATH,
    INPUT_LENGTH,
    LOAD_MODEL_PATH,
    PLUGINS,
    PRECISION,
    PRETRAINED_MODEL_PATH,
    SEED,
)
from tencentpretrain.errors import ConfigError

LEVELS = ("ERROR", "INFO", "DEBUG", "NOTSET")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Run: device, precision, reports."""

    batch_size: int = option(32, "Examples in a batch (one forward pass).", minimum=1)
    precision: str = PRECISION()
    compile: bool = option(False, "Compile the model with torch.compile.")
    engine: str = option(
        "auto",
        "How the model is parallelised; auto: ddp where there are several processes.",
        choices=("auto", "single", "ddp", "fsdp", "deepspeed"),
    )
    report_steps: int = option(100, "Steps between two reports.", minimum=1)
    max_skipped_steps: int = option(
        10,
        "The run ends after so many updates in a row were skipped: their loss or gradient was not finite.",
        minimum=1,
    )
    log_dir: str | None = option(
        None, "Directory of metrics.jsonl, TensorBoard events and curves.png; default: beside the output."
    )
    log_path: str | None = option(None, "File that also receives the log.")
    log_level: str = option("INFO", "What the terminal shows.", choices=LEVELS)
    log_file_level: str = option("INFO", "What log_path receives.", choices=LEVELS)
    plugins: tuple[str, ...] = PLUGINS()


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """Pre-training."""

    output_model_path: str = option(..., "Weights are written here, and to <path>-<step> on the way.")
    dataset_path: tuple[str, ...] = option(
        ("dataset.pt",), "Token stores made by preprocess.py; several may have probabilities, as a:0.7 b:0.3."
    )
    config_path: str = CONFIG_PATH()
    pretrained_model_path: str | None = PRETRAINED_MODEL_PATH()
    total_steps: int = option(100000, "Updates of the weights.", minimum=1)
    save_checkpoint_steps: int = option(10000, "Steps between two checkpoints.", minimum=1)
    accumulation_steps: int = option(1, "Batches whose gradients make one update.", minimum=1)
    resume: str = option(
        "auto",
        "auto: continue from the newest complete training state of output_model_path; never; or its path.",
        former_names=("resume_from_checkpoint",),
    )
    keep_checkpoints: int = option(2, "Training states that are kept.", minimum=1)
    async_checkpoint: bool = option(
        False, "Copy a training state, and write the copy while training goes on."
    )
    verify_dataset: bool = option(False, "Compare every file of the datasets with its checksum first.")
    eval_dataset_path: str | None = option(None, "Token store for validation.")
    eval_steps: int = option(1000, "Steps between two validations.", minimum=1)
    early_stop: int | None = option(
        None,
        "The run ends after so many validations in a row without a lower loss; its best weights are kept.",
        minimum=1,
    )
    workers_num: int | None = option(
        None,
        "Processes that build batches, of each training process; the result does not depend on it; default: "
        "1 beside a GPU, 0 on the CPU.",
        minimum=0,
    )
    labels_num: int | None = option(
        None, "Classes of the cls target; default: as many as the dataset has.", minimum=2
    )
    activation_checkpointing: bool = option(
        False,
        "Recompute layer activations in the backward pass: less memory.",
        former_names=("deepspeed_checkpoint_activations",),
    )
    checkpointed_layers: int = option(
        1,
        "Layers that are recomputed together: more keep fewer activations, but take more while recomputing.",
        minimum=1,
        former_names=("deepspeed_checkpoint_layers_num",),
    )
    checkpointed_keep: str = option(
        "inputs",
        "What --activation_checkpointing keeps: inputs of layers; linear: also results of linear layers: "
        "only attention and what is cheap is computed again.",
        choices=("inputs", "linear"),
    )
    deep_init: bool = option(
        False, "Scale the initial output layers down by the root of twice the number of layers."
    )
    profile: bool = option(
        False, "Write a Chrome trace of a few steps and a table of where their time went into log_dir."
    )
    dry_run: bool = option(False, "Print what would be trained and its cost, touch nothing.")
    world_size: int = option(
        1, "Processes, of all machines; those of this one are started. Not needed with torchrun.", minimum=1
    )
    gpu_ranks: tuple[int, ...] = option(
        (), "Ranks of this machine's processes (default: all); with one process, its GPU.", minimum=0
    )
    master_ip: str | None = option(
        None, "Where the processes of several machines meet, tcp://host:port of the one with rank 0."
    )
    fsdp_offload: bool = option(
        False, "Engine fsdp: keep weights, gradients and optimizer in the host's memory."
    )
    backend: str | None = option(
        None, "Of torch.distributed; default: nccl on GPUs, gloo on CPUs.", choices=("nccl", "gloo")
    )

    obsolete: ClassVar[dict[str, str]] = {
        "instances_buffer_size": "shuffling is global and needs no buffer.",
    }

    def __post_init__(self) -> None:
        for name, default in (("checkpointed_layers", 1), ("checkpointed_keep", "inputs")):
            if getattr(self, name) != default and not self.activation_checkpointing:
                raise ConfigError(f"--{name} is about --activation_checkpointing; give that too.")
        if self.early_stop and self.eval_dataset_path is None:
            raise ConfigError("--early_stop follows the loss on --eval_dataset_path, which is not given.")
        ranks, number = self.local_ranks, self.world_size
        if number == 1:
            return
        if len(set(ranks)) < len(ranks) or not all(rank < number for rank in ranks):
            raise ConfigError(
                f"--gpu_ranks {' '.join(map(str, ranks))}: expected different numbers, each below "
                f"--world_size {number}."
            )
        if len(ranks) < number and self.master_ip is None:
            raise ConfigError(
                f"--gpu_ranks names {len(ranks)} of {number} processes; if the others run on other machines, "
                "give all of them --master_ip tcp://host:port."
            )

    @property
    def local_ranks(self) -> tuple[int, ...]:
        """Ranks of the processes of this machine."""
        return self.gpu_ranks or tuple(range(self.world_size))


@dataclasses.dataclass(frozen=True)
class DeepSpeedConfig:
    """DeepSpeed."""

    deepspeed: bool = option(False, "The same as --engine deepspeed.")
    deepspeed_config: str | None = option(
        None,
        "DeepSpeed's configuration, JSON; default: models/deepspeed_config.json, with enable_zero3 "
        "models/deepspeed_zero3_config.json.",
    )
    enable_zero3: bool = option(False, "Every process keeps a part of the weights only (ZeRO stage 3).")
    local_rank: int | None = option(
        None, "This process's number on its machine; the deepspeed launcher gives it.", minimum=0
    )

    obsolete: ClassVar[dict[str, str]] = {"global_rank": "the launchers tell it by RANK."}

    @property
    def path(self) -> str:
        """The configuration file."""
        return self.deepspeed_config or f"models/deepspeed{'_zero3' * self.enable_zero3}_config.json"


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """Fine-tuning."""

    train_path: str = option(..., "Training set.")
    dev_path: str = option(..., "Development set; the checkpoint with the best score on it is kept.")
    test_path: str | None = option(None, "Test set, evaluated once at the end.")
    output_model_path: str = option("models/finetuned_model.bin", "The best weights are written here.")
    config_path: str = CONFIG_PATH()
    pretrained_model_path: str | None = PRETRAINED_MODEL_PATH()
    epochs_num: int = option(3, "Passes over the training set.", minimum=1)
    seq_length: int = INPUT_LENGTH()
    seed: int = SEED()


@dataclasses.dataclass(frozen=True)
class AdversarialConfig:
    """Adversarial training."""

    use_adv: bool = option(False, "Train on perturbed word embeddings as well.")
    adv_type: str = option("fgm", "FGM (one step) or PGD (several).", choices=("fgm", "pgd"))
    fgm_epsilon: float = option(1e-6, "FGM: norm of the perturbation.", minimum=0)
    pgd_k: int = option(3, "PGD: steps.", minimum=1)
    pgd_epsilon: float = option(1.0, "PGD: largest norm of the perturbation.", minimum=0)
    pgd_alpha: float = option(0.3, "PGD: length of a step.", minimum=0)


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """Classification."""

    soft_targets: bool = option(False, "Train on the column 'logits' too (distillation).")
    soft_alpha: float = option(0.5, "Weight of the soft targets in the loss.", minimum=0, maximum=1)


@dataclasses.dataclass(frozen=True)
class ReadingConfig:
    """How a trained model reads texts."""

    config_path: str = CONFIG_PATH()
    batch_size: int = option(64, "Rows in a batch.", minimum=1)
    seq_length: int = INPUT_LENGTH()
    precision: str = PRECISION()
    plugins: tuple[str, ...] = PLUGINS()


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferConfig(ReadingConfig):
    """Inference."""

    load_model_path: str = LOAD_MODEL_PATH()
    test_path: str = option(..., "Rows to predict.")
    prediction_path: str = option(..., "Predictions are written here, one row per input row, in order.")


@dataclasses.dataclass(frozen=True)
class ClassifierInferConfig:
    """Predictions of a classifier."""

    labels_num: int | None = option(None, "Classes; default: what lies beside the weights.", minimum=2)
    output_logits: bool = option(False, "Write a column with the logits.")
    output_prob: bool = option(False, "Write a column with the probabilities.")
