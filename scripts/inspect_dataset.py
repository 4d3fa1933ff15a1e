"""Look into a token store: counts, lengths, examples as a model sees them; `--help` lists the options."""

from __future__ import annotations

from tencentpretrain.config import DataConfig, Options
from tencentpretrain.data.inspection import InspectConfig, inspect
from tencentpretrain.data.store import TokenStore
from tencentpretrain.errors import run_program


def main() -> None:
    concerns = InspectConfig, DataConfig
    options = Options("Look into a token store.", *concerns)
    store = TokenStore.open(options.get("dataset_path"))
    options.add_layer(f"{store.path}/meta.json", store.options)
    print("\n\n".join(inspect(*options.build(*concerns))))


if __name__ == "__main__":
    run_program(main)
