"""Convert a Hugging Face BART to weights of this toolkit; `--help` lists the options."""

from tencentpretrain.conversion.maps import BART
from tencentpretrain.conversion.program import from_huggingface
from tencentpretrain.errors import run_program

if __name__ == "__main__":
    run_program(lambda: from_huggingface(BART))
