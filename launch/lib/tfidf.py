"""Measures the baseline of the quick-start: TF-IDF and logistic regression on the data of an experiment.

python launch/lib/tfidf.py [--output FILE] [experiment=finetune_demo] [key=value ...]
"""

import argparse
import json
import time
from pathlib import Path

from hydra import compose, initialize_config_dir
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score

from framework.config.command import resolve_config
from framework.config.nodes import check_component
from framework.config.resolvers import conf_folder, register_resolvers
from framework.data.examples.splits import ReadSplits
from framework.data.examples.table import LabelledText, TableData

INVERSE_REGULARIZATION = 10.0


def load_table(overrides: list[str]) -> ReadSplits[LabelledText]:
    """Reads the splits of the experiment that the overrides select."""
    register_resolvers()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        composed = compose("train", overrides)
    data = check_component("data", resolve_config(composed)["data"]).build()
    assert isinstance(data, TableData)
    return data.load()


def measure(table: ReadSplits[LabelledText], split: str) -> dict[str, float]:
    """Trains the classifier on the split `train` and returns its scores on another split."""
    begin = time.perf_counter()
    train, evaluated = table.splits["train"], table.splits[split]
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    classifier = LogisticRegression(C=INVERSE_REGULARIZATION, max_iter=1000)
    classifier.fit(vectorizer.fit_transform([row.text for row in train]), [row.label for row in train])
    predicted = classifier.predict(vectorizer.transform([row.text for row in evaluated]))
    true = [row.label for row in evaluated]
    return {
        "accuracy": accuracy_score(true, predicted),
        "macro_f1": f1_score(true, predicted, average="macro"),
        "seconds": time.perf_counter() - begin,
    }


def main() -> None:
    """Prints the scores, and writes them to a file on request."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="JSON file for the scores")
    parser.add_argument("--split", default="test", help="split to score (test)")
    parser.add_argument("overrides", nargs="*", default=[], help="overrides of framework.train")
    arguments = parser.parse_args()
    overrides = arguments.overrides
    if not any(override.startswith("experiment=") for override in overrides):
        overrides = ["experiment=finetune_demo", *overrides]
    scores = measure(load_table(overrides), arguments.split)
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    print(
        f"TF-IDF + logistic regression on {arguments.split}: accuracy {scores['accuracy']:.4f}, macro F1 "
        f"{scores['macro_f1']:.4f}"
    )


if __name__ == "__main__":
    main()
