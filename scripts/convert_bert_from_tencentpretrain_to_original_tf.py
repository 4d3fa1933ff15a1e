"""Convert BERT weights to the original format, of TensorFlow; `--help` lists the options."""

from tencentpretrain.conversion.maps.original import ORIGINAL_BERT
from tencentpretrain.conversion.tensorflow import to_original
from tencentpretrain.errors import run_program

if __name__ == "__main__":
    run_program(lambda: to_original(ORIGINAL_BERT))
