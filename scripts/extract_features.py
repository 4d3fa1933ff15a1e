"""Write vectors of sentences, as a model sees them; `--help` lists the options."""

from tencentpretrain.errors import run_program
from tencentpretrain.inspection.features import extract_features

if __name__ == "__main__":
    run_program(extract_features)
