"""Convert a Hugging Face Qwen2 to weights of this toolkit; `--help` lists the options."""

from tencentpretrain.conversion.maps import QWEN2
from tencentpretrain.conversion.program import from_huggingface
from tencentpretrain.errors import run_program

if __name__ == "__main__":
    run_program(lambda: from_huggingface(QWEN2))
