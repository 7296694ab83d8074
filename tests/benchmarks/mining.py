"""Speed and memory of hard-negative mining once the texts are encoded: `python -m tests.benchmarks.mining`.

The vectors are random and of length 1, in files as `framework.mine` writes them. The time includes the search, the
choice of the negatives and the rows. The memory is that of the process without pages of mapped files.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from framework.mining.rows import PAIRS_AT_ONCE, Miner
from framework.mining.texts import MinedTexts
from framework.random import generator
from framework.retrieval.approximate import build_index, search_index
from framework.retrieval.negatives import Rules
from framework.retrieval.search import Nearest, nearest, unit

TEXTS_AT_ONCE = 8192


def write_vectors(folder: Path, name: str, num_texts: int, width: int) -> np.ndarray:
    """Writes random vectors of length 1, and returns the memory map of their file."""
    path = folder / f"{name}.npy"
    vectors = np.lib.format.open_memmap(path, "w+", np.float32, (num_texts, width))
    for number, first in enumerate(range(0, num_texts, TEXTS_AT_ONCE)):
        size = min(TEXTS_AT_ONCE, num_texts - first)
        vectors[first : first + size] = unit(generator(0, name, number).normal(size=(size, width)))
    vectors.flush()
    return np.load(path, mmap_mode="r")


def own_mib() -> int:
    """Returns the memory of this process that is no mapped file, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("RssAnon:"))


def measure(num_queries: int, num_documents: int, width: int, index: str) -> dict[str, float | int | str]:
    """Mines all queries, and returns the time and the memory."""
    texts = MinedTexts(
        queries=[f"query {number}" for number in range(num_queries)],
        documents=[f"document {number}" for number in range(num_documents)],
        num_documents=num_documents,
        pairs=[(number, number) for number in range(num_queries)],
        known=[{number} for number in range(num_queries)],
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        queries = write_vectors(folder, "queries", num_queries, width)
        documents = write_vectors(folder, "documents", num_documents, width)
        memory = [own_mib()]
        started = time.perf_counter()
        built = 0.0
        if index == "faiss":
            build_index(documents, folder / "index.faiss")
            built = time.perf_counter() - started

        def search(vectors: np.ndarray, k: int) -> Nearest:
            exact = index == "exact"
            found = nearest(vectors, documents, k) if exact else search_index(folder / "index.faiss", vectors, k)
            memory.append(own_mib())
            return found

        miner = Miner(texts, Rules(relative_margin=None), queries, documents, documents[:0], search)
        rows = [row for first in range(0, num_queries, PAIRS_AT_ONCE) for row in miner.rows(first)]
        seconds = time.perf_counter() - started
    assert len(rows) == num_queries and all(len(row["negatives"]) == 5 for row in rows)
    return {
        "queries": num_queries,
        "documents": num_documents,
        "width": width,
        "index": index,
        "seconds": round(seconds, 2),
        "index_seconds": round(built, 2),
        "vectors_mib": round(num_documents * width * 4 / 2**20),
        "memory_before_mib": memory[0],
        "memory_mib": max(memory),
    }


def main() -> None:
    """Measures and prints one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--index", choices=("exact", "faiss"), default="exact")
    given = parser.parse_args()
    print(json.dumps(measure(given.queries, given.documents, given.width, given.index)))


if __name__ == "__main__":
    main()
