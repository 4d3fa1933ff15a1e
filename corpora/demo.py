"""The whole job on text that is on this machine: vocabulary, dataset, pre-training, fine-tuning, inference.

    make demo

Every step is a command that it prints; the same commands do the job on a corpus of your own.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "models/bert/tiny_config.json"


def run(command: str) -> None:
    print(f"\n$ {command}", flush=True)
    words = shlex.split(command)
    subprocess.run([sys.executable if words[0] == "python" else words[0], *words[1:]], cwd=ROOT, check=True)


def read_labels(path: Path) -> list[str]:
    return [line.split("\t")[0] for line in path.read_text(encoding="utf-8").splitlines()[1:]]


def accuracy(predictions: Path, gold: Path) -> float:
    pairs = list(zip(read_labels(predictions), read_labels(gold), strict=True))
    return 100 * sum(a == b for a, b in pairs) / len(pairs)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--directory", type=Path, default=Path("demo"), help="where everything is written")
    parser.add_argument("--total_steps", type=int, default=600, help="steps of pre-training")
    parser.add_argument("--epochs_num", type=int, default=6, help="epochs of fine-tuning")
    options = parser.parse_args()
    demo: Path = options.directory
    where = shlex.quote(str(demo))
    started = time.monotonic()

    run(f"python corpora/stdlib_text.py --output_directory {where}")
    run(
        f"python scripts/build_vocab.py --type wordpiece --vocab_size 8000 --corpus_path {where}/corpus.txt "
        f"--output_path {where}/vocab.txt"
    )
    run(
        f"python preprocess.py --corpus_path {where}/corpus.txt --vocab_path {where}/vocab.txt "
        f"--dataset_path {where}/dataset --data_processor bert --seq_length 128 --processes_num 2"
    )
    run(
        f"python pretrain.py --dataset_path {where}/dataset --config_path {CONFIG} "
        f"--output_model_path {where}/bert.bin --total_steps {options.total_steps} --learning_rate 2e-3 "
        "--save_checkpoint_steps 300 --report_steps 100"
    )
    scores = {}
    for name, start in (("pretrained", f"--pretrained_model_path {where}/bert.bin"), ("random", "")):
        tokenizer = "" if start else f"--config_path {CONFIG} --vocab_path {where}/vocab.txt"
        run(
            f"python finetune/run_classifier.py {start} {tokenizer} --train_path {where}/train.tsv "
            f"--dev_path {where}/dev.tsv --output_model_path {where}/classifier_{name}.bin "
            f"--epochs_num {options.epochs_num} --learning_rate 1e-3 --report_steps 40"
        )
        run(
            f"python inference/run_classifier_infer.py --load_model_path {where}/classifier_{name}.bin "
            f"--test_path {where}/test.tsv --prediction_path {where}/predictions_{name}.tsv --output_prob"
        )
        scores[name] = accuracy(demo / f"predictions_{name}.tsv", demo / "test.tsv")

    modules = (demo / "labels.txt").read_text(encoding="utf-8").split()
    test = [line.split("\t") for line in (demo / "test.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    predicted = read_labels(demo / "predictions_pretrained.tsv")
    print("\nWhich module is a docstring from? Some predictions of the pre-trained model:")
    for (gold, text), guess in list(zip(test, predicted, strict=True))[:6]:
        mark = "right" if gold == guess else f"wrong: {modules[int(gold)]}"
        print(f"  {modules[int(guess)]:12} ({mark})  {text[:70]}")
    majority = 100 * max(Counter(gold for gold, _ in test).values()) / len(test)
    print(
        f"\nAccuracy on {len(test)} test rows: {scores['pretrained']:.1f} % from the pre-trained weights, "
        f"{scores['random']:.1f} % from random ones, {majority:.1f} % for always the most frequent module."
    )
    print(f"Curves: {demo}/bert.bin.logs/curves.png (pre-training), {demo}/classifier_*.bin.logs/curves.png")
    print(f"Done in {time.monotonic() - started:.0f} s; everything is in {demo}/")
    (demo / "scores.json").write_text(json.dumps(scores) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
