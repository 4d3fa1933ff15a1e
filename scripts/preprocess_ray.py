"""preprocess.py on a Ray cluster: the same options and the same tokens; `--help` lists the options."""

from __future__ import annotations

import sys

from tencentpretrain.data.distributed import preprocess_on_ray
from tencentpretrain.errors import run_program


def main() -> None:
    store = preprocess_on_ray(sys.argv[1:])
    print(f"{store.path}: {store.documents_num:,} documents, {store.tokens_num:,} tokens.")


if __name__ == "__main__":
    run_program(main)
