"""Print the nearest neighbours of words in the word embedding; `--help` lists the options."""

from tencentpretrain.errors import run_program
from tencentpretrain.inspection.words import topn_words_indep

if __name__ == "__main__":
    run_program(topn_words_indep)
