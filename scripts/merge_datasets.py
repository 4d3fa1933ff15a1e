"""Join token stores, for instance the parts of `preprocess.py --shard`; `--help` lists the options."""

from __future__ import annotations

from tencentpretrain.config import Options
from tencentpretrain.data.merge import MergeConfig, merge
from tencentpretrain.errors import run_program


def main() -> None:
    (config,) = Options("Join token stores.", MergeConfig).build(MergeConfig)
    store = merge(config)
    print(f"{store.path}: {store.documents_num:,} documents, {store.tokens_num:,} tokens.")


if __name__ == "__main__":
    run_program(main)
