"""Embeddings, by the names in `"embedding"`."""

from tencentpretrain.embeddings import dual, pos, seg, sinusoidalpos, word  # noqa: F401  registers
from tencentpretrain.embeddings.embedding import Embedding

__all__ = ["Embedding"]
