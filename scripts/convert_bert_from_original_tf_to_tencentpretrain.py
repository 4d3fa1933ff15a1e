"""Convert the original BERT, of TensorFlow, to weights of this toolkit; `--help` lists the options."""

from tencentpretrain.conversion.maps.original import ORIGINAL_BERT
from tencentpretrain.conversion.tensorflow import from_original
from tencentpretrain.errors import run_program

if __name__ == "__main__":
    run_program(lambda: from_original(ORIGINAL_BERT))
