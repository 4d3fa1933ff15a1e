"""Convert FNet weights of this toolkit to Hugging Face; `--help` lists the options."""

from tencentpretrain.conversion.maps import FNET
from tencentpretrain.conversion.program import to_huggingface
from tencentpretrain.errors import run_program

if __name__ == "__main__":
    run_program(lambda: to_huggingface(FNET))
