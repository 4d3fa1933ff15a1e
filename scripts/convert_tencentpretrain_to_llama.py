"""Convert LLaMA weights of this toolkit to Meta's format; `--help` lists the options."""

from tencentpretrain.conversion.llama_programs import to_meta
from tencentpretrain.errors import run_program

if __name__ == "__main__":
    run_program(to_meta)
