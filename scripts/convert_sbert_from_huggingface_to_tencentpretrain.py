"""Convert a BERT of sentence-transformers to a siamese model of this toolkit; `--help` lists the options."""

from tencentpretrain.conversion.program import sbert_from_huggingface
from tencentpretrain.errors import run_program

if __name__ == "__main__":
    run_program(sbert_from_huggingface)
