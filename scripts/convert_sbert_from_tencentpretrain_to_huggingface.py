"""Convert a siamese BERT of this toolkit to sentence-transformers; `--help` lists the options."""

from tencentpretrain.conversion.program import sbert_to_huggingface
from tencentpretrain.errors import run_program

if __name__ == "__main__":
    run_program(sbert_to_huggingface)
