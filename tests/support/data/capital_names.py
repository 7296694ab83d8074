"""A model that finds names without weights: words in capitals."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from framework.data.preparation.personal_data import FindNames, Span


@dataclass(frozen=True)
class Capitals:
    """Model whose names are words in capitals; writes the texts that it is asked for into a file.

    Attributes:
        log: File.
        kind: Part of its identity.
    """

    log: Path
    kind: str = "PER"

    def identity(self) -> dict[str, str]:
        return {"types": self.kind}

    def __call__(self) -> FindNames:
        def find(texts: Sequence[str]) -> list[list[Span]]:
            with self.log.open("a") as file:
                file.writelines(f"{text}\n" for text in texts)
            return [[match.span() for match in re.finditer(r"[A-Z]{2,}(?: \S+@\S+)?", text)] for text in texts]

        return find
