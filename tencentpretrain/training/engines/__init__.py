"""Engines: how a model is trained on one device or many."""

from tencentpretrain.training.engines.base import Engine, choose_device, choose_precision
from tencentpretrain.training.engines.ddp import DDPEngine
from tencentpretrain.training.engines.deepspeed import DeepSpeedEngine
from tencentpretrain.training.engines.deepspeed_config import DeepSpeedSetup, read_deepspeed_config
from tencentpretrain.training.engines.fsdp import FSDPEngine
from tencentpretrain.training.engines.processes import Place, choose_engine
from tencentpretrain.training.engines.single import SingleEngine

__all__ = [
    "DDPEngine", "DeepSpeedEngine", "DeepSpeedSetup", "Engine", "FSDPEngine", "Place", "SingleEngine",
    "choose_device", "choose_engine", "choose_precision", "read_deepspeed_config",
]  # fmt: skip
