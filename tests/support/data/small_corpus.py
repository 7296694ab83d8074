"""Writes a small corpus, and lists the contents of folders."""

from pathlib import Path

from framework.data.tokenization.wordpiece_training import WordPieceTraining

VOCABULARY = WordPieceTraining(vocab_size=200)


def write_corpus(folder: Path, num_documents: int = 40) -> Path:
    folder.mkdir(exist_ok=True)
    for number in range(num_documents):
        words = " ".join(f"word{(number * 7 + index) % 23}" for index in range(5 + number % 3))
        (folder / f"{number:03}.txt").write_text(f"Title {number}\n\n{words}. The cat sat.<br />Nice!\n")
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
