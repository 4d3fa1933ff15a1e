"""The vocabulary of the tiny model, without special tokens."""

WORDS = ["river", "water", "bank", "banks", "money", "cash", "old", "##ing", "fish"]
