"""Fine-tune a model to classify sentences or pairs of sentences; `--help` lists the options."""

from tencentpretrain.errors import run_program
from tencentpretrain.tasks.runner import finetune

if __name__ == "__main__":
    run_program(lambda: finetune("classifier"))
