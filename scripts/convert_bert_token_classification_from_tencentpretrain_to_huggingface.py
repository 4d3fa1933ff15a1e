"""Convert a BERT token classifier of this toolkit to Hugging Face; `--help` lists the options."""

from tencentpretrain.conversion.maps import BERT
from tencentpretrain.conversion.program import to_huggingface
from tencentpretrain.errors import run_program

if __name__ == "__main__":
    run_program(lambda: to_huggingface(BERT.with_head("token_classification")))
