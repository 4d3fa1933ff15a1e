"""Classify sentences or pairs of sentences with a fine-tuned model; `--help` lists the options."""

from tencentpretrain.errors import run_program
from tencentpretrain.tasks.runner import infer

if __name__ == "__main__":
    run_program(lambda: infer("classifier"))
