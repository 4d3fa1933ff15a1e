"""Kill -9 at random moments: every restart finds a complete state, and the end is that of an undisturbed run.

A tiny BERT that saves after every step is killed so often, then left to finish; its final weights are
compared with those of a run that was left alone.

    python benchmarks/kill.py --kills 50
    python benchmarks/kill.py --kills 50 --processes 2    # by turns all of a run, and one process of it
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
WORDS = [f"w{number}" for number in range(2000)]
SIZES = "--hidden_size 64 --emb_size 64 --feedforward_size 128 --heads_num 2 --layers_num 2"


def program(name: str, options: str, log: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, name, *options.split()], cwd=ROOT, env=environment, stdout=file, stderr=file
        )


def finish(process: subprocess.Popen[bytes], log: Path) -> None:
    if process.wait() != 0:
        sys.exit(f"{log.read_text()}\nexit status {process.returncode}")


def children_of(pid: int) -> list[int]:
    """Processes that it has started, and those that these have started."""
    try:
        own = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:  # it has ended
        return []
    return own + [later for child in own for later in children_of(child)]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ranks_of(launcher: int) -> list[int]:
    """Its processes of ranks; another one clears up after them."""
    started = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return [int(pid) for pid in started if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def kill(process: subprocess.Popen[bytes], victims: list[int]) -> None:
    """Kill some processes of a run, and see all others that it has started end."""
    started = children_of(process.pid)
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    for _ in range(6000):
        if not any(map(is_running, started)):
            return
        time.sleep(0.01)
    sys.exit(f"a minute after the end of the run its processes {[*filter(is_running, started)]} live on")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    generator = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        log = place / "log"
        (place / "vocab.txt").write_text(
            "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n"
        )
        lines = (" ".join(generator.choices(WORDS, k=12)) for _ in range(3000))
        (place / "corpus.txt").write_text("\n".join(lines) + "\n")
        corpus = (
            f"--corpus_path {place}/corpus.txt --vocab_path {place}/vocab.txt --dataset_path {place}/dataset"
        )
        finish(program("preprocess.py", f"{corpus} --data_processor mlm --seq_length 16", log), log)
        options = (
            f"--dataset_path {place}/dataset {SIZES} --data_processor mlm --embedding word pos --target mlm "
            f"--total_steps {arguments.steps} --batch_size 4 --precision fp32 --workers_num 1 "
            f"--world_size {arguments.processes}"
        )
        killed = f"{options} --save_checkpoint_steps 1 --output_model_path {place}/parts.bin"
        states = place / "parts.bin.states"
        amid_save = found = 0
        for number in range(arguments.kills):
            before = max((int(path.name) for path in states.glob("[0-9]*")), default=0)
            process = program("pretrain.py", killed, log)
            if number % 5:  # every fifth while it starts, the next one before or after its first step
                while (b"resume: " if number % 5 == 1 else b"saved step ") not in log.read_bytes():
                    if process.poll() is not None:
                        sys.exit(log.read_text())
                    time.sleep(0.01)
                time.sleep(generator.uniform(0, 3))
            else:
                time.sleep(generator.uniform(0, 5))
            amid_save += any(states.glob(".*.tmp"))
            ranks = ranks_of(process.pid) if arguments.processes > 1 else []
            kill(process, ranks[-1:] if ranks and number % 2 else [process.pid, *ranks])
            if process.returncode == 0:
                sys.exit(f"the run was over before kill {number + 1}; give more --steps")
            text = log.read_text()
            resumed = re.search(r"resume: continuing from step (\d+)", text)
            if resumed:
                found += 1
                if int(resumed[1]) < before:
                    sys.exit(f"kill {number}: step {before} was complete, but\n{text}")
            if "passed over" in text or (before and "starting at step 0" in text):
                sys.exit(f"kill {number}: a state under its name was not complete\n{text}")
            for path in place.glob("parts.bin-[0-9]*[0-9]"):
                torch.load(path, weights_only=True)
                if int(path.name.rpartition("-")[2]) < before - 5:
                    path.unlink()  # there would be thousands
            newest = max((int(path.name) for path in states.glob("[0-9]*")), default=0)
            print(f"kill {number + 1}: at step {newest}", flush=True)
        finish(program("pretrain.py", killed, log), log)
        finish(program("pretrain.py", f"{options} --output_model_path {place}/whole.bin", log), log)
        whole, parts = (torch.load(place / f"{name}.bin", weights_only=True) for name in ("whole", "parts"))
        same = whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
        print(
            f"{arguments.kills} kills, {amid_save} of them amid a save; {found} starts went on from a state; "
            f"final weights {'equal to the last bit' if same else 'DIFFER'}"
        )
        sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
