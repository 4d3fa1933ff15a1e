"""A weights file as a directory of smaller ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tencentpretrain.config.options import option


@dataclasses.dataclass(frozen=True)
class BlocksConfig:
    """Splitting a weights file."""

    input_model_path: str = option(..., "Weights: a file, or a directory of several.")
    output_model_path: str = option(..., "Directory for the blocks and their index.")
    block_size: float = option(10, "Size of a block in GB.", minimum=0)


def convert_into_blocks(config: BlocksConfig) -> str:
    """Write weights as files of about `block_size`, one of them in memory at a time.

    Tensors keep their type, and have our names. `tencentpretrain_model.bin.index.json` says which file holds
    which; what lies beside the weights is copied.

    Raises:
        UserError: the weights cannot be read, or the output is what is read.
    """
    from tencentpretrain.description import carried, description_path, read_description
    from tencentpretrain.errors import UserError
    from tencentpretrain.files import check_not_input, complete_directory, write_json
    from tencentpretrain.state_dict import origin, renamed, save_weights
    from tencentpretrain.weights import open_weights

    source, target = Path(config.input_model_path), Path(config.output_model_path)
    check_not_input(target, "--output_model_path", {"input_model_path": config.input_model_path})
    if source.resolve().is_relative_to(target.resolve()):
        raise UserError(
            f"--output_model_path {target} holds --input_model_path {source}, and would be replaced as a "
            "whole; give another path."
        )
    tensors, _ = open_weights(source)
    description = read_description(source)
    blocks: list[list[str]] = [[]]
    size = total = 0
    places: dict[object, int] = {}  # tied weights are in one block
    for name in tensors:
        added = tensors[name].nbytes
        if (key := origin(tensors, name)) in places:
            blocks[places[key]].append(name)
            continue
        if blocks[-1] and size + added > config.block_size * 1e9:
            blocks.append([])
            size = 0
        places[key] = len(blocks) - 1
        blocks[-1].append(name)
        size, total = size + added, total + added
    if description is not None:
        description = carried(description, source, target)
    with complete_directory(target) as temporary:
        index: dict[str, str] = {}
        for number, names in enumerate(blocks):
            file = f"tencentpretrain_model-{number}.bin"
            save_weights(renamed(tensors, {name: name for name in names}), temporary / file)
            index |= dict.fromkeys(names, file)
        content = {"metadata": {"total_size": total}, "weight_map": index}
        write_json(temporary / "tencentpretrain_model.bin.index.json", content)
    if description is not None:
        write_json(description_path(target), description)
    return f"{target}: {len(blocks)} blocks, {total / 1e9:.2f} GB"
