"""Write the word embedding of a model as text; `--help` lists the options."""

from tencentpretrain.errors import run_program
from tencentpretrain.inspection.words import extract_embeddings

if __name__ == "__main__":
    run_program(extract_embeddings)
