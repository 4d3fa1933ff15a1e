"""Programs that look at a model's vectors: features of sentences, neighbours of words."""
