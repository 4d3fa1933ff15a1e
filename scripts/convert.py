"""Convert weights of this toolkit to Hugging Face, or back; `--help` lists the options."""

from tencentpretrain.conversion.program import convert
from tencentpretrain.errors import run_program

if __name__ == "__main__":
    run_program(convert)
