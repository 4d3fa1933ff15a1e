"""Finished distributed runs exit with 0: two processes with gloo train three steps, again and again.

They are forks of a process that has imported everything, so that a try takes a second; they
end as any program does.

    python benchmarks/exits.py --tries 50 --engine ddp
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import shutil
import socket
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORDS = [f"w{number}" for number in range(100)]
SIZES = {"hidden_size": 8, "emb_size": 8, "feedforward_size": 8, "heads_num": 2, "layers_num": 1}


def forked(program: str, options: list[str], log: Path, **told: object) -> int:
    """Run a program in a fork of this process, which gets its number; the fork itself gets 0 at the end."""
    process = os.fork()
    if process == 0:
        with log.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.environ |= {name: str(value) for name, value in told.items()}
        sys.argv = [program, *options]
        runpy.run_path(str(ROOT / program), run_name="__main__")
    return process


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tries", type=int, default=50)
    parser.add_argument("--engine", default="ddp")
    arguments = parser.parse_args()

    import matplotlib.backends.backend_agg  # noqa: F401
    import torch._dynamo  # an optimizer needs it
    import torch.utils.tensorboard

    import tencentpretrain.training.pretraining  # noqa: F401

    torch.set_num_threads(1)  # other threads would not survive the fork
    os.chdir(ROOT)  # the configuration of DeepSpeed is named from there
    place = Path(tempfile.mkdtemp())
    logs = [place / f"log-{rank}" for rank in range(2)]
    (place / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    (place / "corpus.txt").write_text("".join(" ".join(WORDS[at : at + 9]) + "\n" for at in range(90)))
    config = {"embedding": ["word", "pos"], "target": ["mlm"], "data_processor": "mlm", "seq_length": 16}
    (place / "config.json").write_text(json.dumps(SIZES | config))
    words = {"corpus_path": "corpus.txt", "vocab_path": "vocab.txt", "dataset_path": "dataset"}
    options = [f"--{name}={place / value}" for name, value in words.items()]
    process = forked("preprocess.py", [*options, "--data_processor=mlm"], logs[0])
    if process == 0:
        return
    if os.waitpid(process, 0)[1]:
        sys.exit(logs[0].read_text())
    files = {"dataset_path": "dataset", "config_path": "config.json", "output_model_path": "model.bin"}
    options = [f"--{name}={place / value}" for name, value in files.items()]
    options += [f"--engine={arguments.engine}", "--total_steps=3", "--batch_size=4", "--resume=never"]
    failed = 0
    for number in range(arguments.tries):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": 2}
        ranks = []
        for rank in range(2):
            ranks.append(forked("pretrain.py", options, logs[rank], RANK=rank, LOCAL_RANK=rank, **told))
            if ranks[-1] == 0:
                return
        statuses = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in ranks]
        if any(statuses):
            failed += 1
            print(f"try {number + 1}: {statuses}\n{''.join(log.read_text() for log in logs)}", flush=True)
    shutil.rmtree(place)
    print(f"{arguments.engine}: {arguments.tries - failed} of {arguments.tries} runs exited with 0")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
