"""Answers questions with the models of launch/faq.sh: `python launch/lib/faq.py FOLDER`, one question per line.

The embedding model finds the best answers of the table. The reranker orders them, unless the first answer is then right
less often on questions of the validation split.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from framework import load
from framework.retrieval.search import nearest
from framework.tasks.embedding.data import TextPairData
from framework.trained_model import TrainedModel

NUM_RERANKED, NUM_SHOWN = 10, 3
MOST_TESTED = 200


class Faq:
    """Answers of a table, with the models that find them.

    Args:
        embedding: Embedding model.
        reranker: Reranker.
        answers: Different answers.

    Attributes:
        is_reranked: True if `ask` uses the reranker.
    """

    def __init__(self, embedding: TrainedModel, reranker: TrainedModel, answers: Sequence[str]) -> None:
        self.embedding = embedding
        self.reranker = reranker
        self.answers = answers
        self.vectors = embedding.embed(answers)
        self.is_reranked = True

    def ask(self, question: str) -> list[tuple[str, float]]:
        """Returns the best answers and their scores, best first."""
        found = nearest(self.embedding.embed([question]), self.vectors, min(NUM_RERANKED, len(self.answers)))
        best = [self.answers[index] for index in found.indices[0]]
        if not self.is_reranked:
            return list(zip(best, found.scores[0].tolist(), strict=True))
        (row,) = self.reranker.predict([{"query": question, "documents": json.dumps(best)}])
        order = np.argsort(-np.array(row["scores"]), kind="stable")
        return [(best[index], row["scores"][index]) for index in order]

    def choose(self, tested: Sequence[tuple[str, str]]) -> str:
        """Decides about the reranker by the share of questions whose first answer is right; returns a line about it."""
        shares = []
        for self.is_reranked in (False, True):
            shares.append(np.mean([self.ask(question)[0][0] == answer for question, answer in tested]))
        self.is_reranked = bool(shares[1] >= shares[0])
        use = "used" if self.is_reranked else "not used: train it longer, or on more questions"
        return (
            f"{len(tested)} questions outside of the training: the first answer is right for {shares[0]:.3f} by the "
            f"embeddings, for {shares[1]:.3f} after the reranker, which is {use}."
        )


def read_tested(folder: Path) -> list[tuple[str, str]]:
    """Returns questions of the validation split with their answers."""
    file = str(folder / "mined.jsonl")
    data = TextPairData(file, text_column="query", pair_column="positive", validation_fraction=0.1)
    rows = data.load().splits["validation"]
    return [row.texts for row in rows[:: -(-len(rows) // MOST_TESTED)]]  # type: ignore[misc]  pairs


def read_answers(folder: Path) -> list[str]:
    """Returns the different answers of the mined rows."""
    rows = [json.loads(line) for line in (folder / "mined.jsonl").read_text(encoding="utf-8").splitlines()]
    return list(dict.fromkeys(row["positive"] for row in rows))


def main() -> None:
    """Reads questions from the terminal or a pipe, and prints answers and times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of launch/faq.sh")
    folder = parser.parse_args().folder
    faq = Faq(load(str(folder / "embedding")), load(str(folder / "reranker")), read_answers(folder))
    print(faq.choose(read_tested(folder)))
    is_typed = sys.stdin.isatty()
    print(f"{len(faq.answers):,} answers. Type a question; an empty line ends.", flush=True)
    while True:
        print("question> ", end="", flush=True)
        question = sys.stdin.readline().strip()
        if not question:
            break
        if not is_typed:
            print(question)
        begin = time.perf_counter()
        answers = faq.ask(question)
        milliseconds = 1000 * (time.perf_counter() - begin)
        for answer, score in answers[:NUM_SHOWN]:
            print(f"{score:8.2f}  {answer}")
        print(f"{milliseconds:8.0f} ms", flush=True)


if __name__ == "__main__":
    main()
