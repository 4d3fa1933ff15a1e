"""Convert a Hugging Face T5 to weights of this toolkit; `--help` lists the options."""

from tencentpretrain.conversion.maps import T5, T5_V1_1
from tencentpretrain.conversion.program import from_huggingface
from tencentpretrain.errors import run_program

if __name__ == "__main__":
    run_program(lambda: from_huggingface(T5, T5_V1_1))
