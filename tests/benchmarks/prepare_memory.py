"""Memory and speed of framework.prepare: `python -m tests.benchmarks.prepare_memory [--megabytes 200] [--workers 2]`.

Generates text (words drawn by Zipf's law from a million random ones), runs the command in a separate process and
samples the memory of the whole process tree: the proportional set size, in which shared pages count once.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from framework.random import generator, key, mix, uniform

_DISTINCT_WORDS = 1_000_000
_WORDS_AT_ONCE = 1_000_000
_SENTENCE_WORDS, _DOCUMENT_SENTENCES = 18, 12


def words(count: int) -> np.ndarray:
    """Returns (count,) random words of 2 to 12 letters as objects; a few may be equal."""
    letters = generator(0, "letters of words").integers(97, 123, size=(count, 12), dtype=np.uint8)
    lengths = generator(0, "lengths of words").integers(2, 13, size=count)
    letters[np.arange(12) >= lengths[:, None]] = 0
    return letters.view("S12")[:, 0].astype(str).astype(object)


def text_blocks(num_bytes: int) -> Iterator[str]:
    """Writes documents between blank lines, about this number of bytes in all; each block from its own key."""
    vocabulary = words(_DISTINCT_WORDS)
    # Mandelbrot's form of Zipf's law, about that of English.
    weights = (np.arange(_DISTINCT_WORDS) + 2.7) ** -1.07
    ends = np.cumsum(weights) / weights.sum()
    done, number = 0, 0
    while done < num_bytes:
        draws = uniform(mix(key(0, "words of a block", number), np.arange(_WORDS_AT_ONCE)))
        drawn = vocabulary[np.minimum(np.searchsorted(ends, draws), _DISTINCT_WORDS - 1)]
        sentences = [
            " ".join(drawn[first : first + _SENTENCE_WORDS]).capitalize() + "."
            for first in range(0, _WORDS_AT_ONCE, _SENTENCE_WORDS)
        ]
        block = "".join(
            " ".join(sentences[first : first + _DOCUMENT_SENTENCES]) + "\n\n"
            for first in range(0, len(sentences), _DOCUMENT_SENTENCES)
        )
        yield block
        done += len(block)
        number += 1


def process_tree(root: int) -> list[int]:
    """Returns the ids of a process and all its descendants."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(folder.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def proportional_bytes(pid: int) -> int:
    """Returns the proportional set size of a process; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def main() -> None:
    """Generates, prepares, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("overrides", nargs="*", help="of framework.prepare")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        text, store = Path(name) / "text.txt", Path(name) / "store"
        with text.open("w", encoding="utf-8") as file:
            for block in text_blocks(arguments.megabytes * 10**6):
                file.write(block)
        megabytes = text.stat().st_size / 1e6
        command = [sys.executable, "-m", "framework.prepare", "corpus=text", f"corpus.sources.text.files={text}"]
        command += ["corpus.sources.text.documents=blank_lines", f"store={store}", f"num_workers={arguments.workers}"]
        began = time.perf_counter()
        process = subprocess.Popen([*command, *arguments.overrides])
        peak, peak_of_each = 0, {"main": 0, "largest worker": 0}
        while process.poll() is None:
            main_bytes, *others = [proportional_bytes(pid) for pid in process_tree(process.pid)]
            peak = max(peak, main_bytes + sum(others))
            peak_of_each["main"] = max(peak_of_each["main"], main_bytes)
            peak_of_each["largest worker"] = max([peak_of_each["largest worker"], *others])
            time.sleep(0.2)
        seconds = time.perf_counter() - began
    if process.returncode:
        sys.exit(process.returncode)
    each = ", ".join(f"{who} {size / 2**20:,.0f} MiB" for who, size in peak_of_each.items())
    print(f"{megabytes:,.0f} MB in {seconds:,.1f} s, {megabytes / seconds:.1f} MB/s, {arguments.workers} workers")
    print(f"peak of all processes together {peak / 2**20:,.0f} MiB ({each})")


if __name__ == "__main__":
    main()
