"""Convert a LLaMA as Meta publishes it to weights of this toolkit; `--help` lists the options."""

from tencentpretrain.conversion.llama_programs import from_meta
from tencentpretrain.errors import run_program

if __name__ == "__main__":
    run_program(from_meta)
