"""Parameters, memory and arithmetic of a configuration, without data; `--help` lists the options."""

from tencentpretrain.config import ModelConfig, Options, json_options
from tencentpretrain.errors import run_program
from tencentpretrain.training.count import CountConfig, describe_count


def main() -> None:
    options = Options("Count what a model costs, without building it.", ModelConfig, CountConfig)
    options.add_json(options.get("config_path"), json_options())
    print(describe_count(*options.build(ModelConfig, CountConfig)))


if __name__ == "__main__":
    run_program(main)
