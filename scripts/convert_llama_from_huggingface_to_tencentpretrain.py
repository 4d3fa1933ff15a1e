"""Convert a Hugging Face LLaMA to weights of this toolkit; `--help` lists the options."""

from pathlib import Path

from tencentpretrain.conversion.llama_programs import from_huggingface
from tencentpretrain.errors import run_program

if __name__ == "__main__":
    run_program(lambda: from_huggingface(Path(__file__).parents[1] / "models" / "llama"))
