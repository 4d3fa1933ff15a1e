"""Print the nearest neighbours of words in the context of a sentence; `--help` lists the options."""

from tencentpretrain.errors import run_program
from tencentpretrain.inspection.words import topn_words_dep

if __name__ == "__main__":
    run_program(topn_words_dep)
