"""Conversion to and from Hugging Face Transformers: tables of rules (`maps`) and what applies them."""
