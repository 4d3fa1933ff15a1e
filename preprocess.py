"""Corpus to token store: `python preprocess.py --corpus_path … --vocab_path … --data_processor mlm`."""

from __future__ import annotations

from tencentpretrain.data.program import read_job
from tencentpretrain.data.store import TokenStore
from tencentpretrain.errors import run_program


def main() -> None:
    job = read_job()
    for note in job.notes:
        print(note)
    report = job.run()
    if str(report):
        print(report)
    store = TokenStore.open(job.config.dataset_path)
    print(
        f"{job.config.dataset_path}: {store.documents_num:,} documents, {store.sentences_num:,} sentences, "
        f"{store.tokens_num:,} tokens of a vocabulary of {job.tokenizer.vocab_size:,}."
    )


if __name__ == "__main__":
    run_program(main)
