"""Convert a RoBERTa of Hugging Face to weights of this toolkit; `--help` lists the options."""

from tencentpretrain.conversion.maps import ROBERTA
from tencentpretrain.conversion.program import from_huggingface
from tencentpretrain.errors import run_program

if __name__ == "__main__":
    run_program(lambda: from_huggingface(ROBERTA))
