"""Convert a Hugging Face BERT token classifier to weights of this toolkit; `--help` lists the options."""

from tencentpretrain.conversion.maps import BERT
from tencentpretrain.conversion.program import from_huggingface
from tencentpretrain.errors import run_program

if __name__ == "__main__":
    run_program(lambda: from_huggingface(BERT.with_head("token_classification")))
