"""Text from a model: prompts to the tokens that continue them."""

from tencentpretrain.generation.continuation import Continuation
from tencentpretrain.generation.greedy import generate, greedy

__all__ = ["Continuation", "generate", "greedy"]
