"""The best allowed sequence of tags against all sequences; equal metrics on one and two processes; the head."""

import itertools

import numpy as np
import pytest
import torch

from framework.data.planning.plan import StepSequences
from framework.data.tokenization.tokenizer import Tokenizer
from framework.distributed.mesh import build_mesh, mesh_shape
from framework.models.config import EncoderConfig
from framework.modules.evaluation import SplitEvaluation
from framework.tasks.token_classification import decode
from framework.tasks.token_classification.decode import best_paths, bio_tag_set, bio_transitions
from framework.tasks.token_classification.features import Example, tagging_source
from framework.tasks.token_classification.head import build_token_classification_head
from framework.tasks.token_classification.task import TokenClassificationTask
from tests.support.models import peers

TAGS = bio_tag_set(["x", "y-z"])


def is_bio(tags: list[str]) -> bool:
    return all(
        not tag.startswith("I-") or before in (tag, f"B-{tag[2:]}") for before, tag in itertools.pairwise(["O", *tags])
    )


def test_tags_and_transitions_by_hand():
    assert TAGS == ("O", "B-x", "I-x", "B-y-z", "I-y-z")
    inside_x, inside_y = [False, True, True, False, False], [False, False, False, True, True]
    assert bio_transitions(TAGS).T.tolist() == [[True] * 5, [True] * 5, inside_x, [True] * 5, inside_y]


def test_paths_are_the_best_of_all_that_bio_allows(monkeypatch):
    monkeypatch.setattr(decode, "_SENTENCES_AT_ONCE", 7)
    random = np.random.default_rng(0)
    lengths = random.integers(0, 5, size=40)
    scores = random.normal(size=(lengths.sum(), 5)).astype(np.float32)
    paths = best_paths(scores, lengths, bio_transitions(TAGS))
    changed = 0
    for own, path in zip(*(np.split(each, np.cumsum(lengths)[:-1]) for each in (scores, paths)), strict=True):
        legal = [
            indices
            for indices in itertools.product(range(5), repeat=len(own))
            if is_bio([TAGS[index] for index in indices])
        ]
        best = max(legal, key=lambda indices: sum(float(own[at, index]) for at, index in enumerate(indices)))
        assert tuple(path) == best
        changed += tuple(own.argmax(1)) != best
    assert changed > 10


def share_of_rank(folder: str, num_ranks: int) -> tuple[dict[str, float], list[dict]]:
    """Runs on each rank: every other window of a split, in uneven micro-batches."""
    rank = torch.distributed.get_rank()
    random = np.random.default_rng(1)
    examples = []
    for length in random.integers(1, 20, size=40):
        tags = ["O"] * int(length)
        for start in range(0, int(length) - 2, 4):
            tags[start : start + 2] = random.choice([["B-x", "I-x"], ["B-y-z", "O"], ["B-x", "B-x"]])
        examples.append(Example(["a"] * int(length), tags))
    task = TokenClassificationTask(max_length=8, stride=3)
    task.restore({"labels": list(TAGS)})
    source = tagging_source(examples, TAGS, Tokenizer.from_folder(folder), 8, 3)
    mesh = build_mesh("ddp", mesh_shape("ddp", num_ranks), "cpu")
    evaluation = SplitEvaluation(task, source, torch.device("cpu"), mesh)
    mine = np.arange(rank, len(source), num_ranks)
    for items in (mine[:5], mine[5:5], mine[5:]):
        batch = source.build(StepSequences(np.zeros_like(items), items, items), 0)
        # Scores that contain the tag plus a value from a hash of the position.
        ids = torch.repeat_interleave(batch.sequence_ids, batch.cu_seqlens.diff()) * 8 + batch.position_ids
        noise = torch.sin(ids[:, None] * 12.9898 + torch.arange(5) * 78.233).float()
        known = torch.nn.functional.one_hot(batch.targets["labels"].clamp(min=0), 5)
        outputs = {"logits": noise * 2 + known}
        evaluation.update(outputs, task.loss_sums(outputs, batch), batch)
    return evaluation.compute(), evaluation.class_table()


def test_metrics_are_the_same_on_one_and_on_two_processes(workers, tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]) + "\n")
    ((alone, table),) = workers.run(share_of_rank, 1, str(tmp_path), 1)
    assert 0.1 < alone["entity_f1"] < 0.9
    for values, rows in workers.run(share_of_rank, 2, str(tmp_path), 2):
        assert values.pop("loss") == pytest.approx(alone["loss"], rel=1e-6)  # a sum in fp32
        assert values == {name: value for name, value in alone.items() if name != "loss"} and rows == table


@pytest.mark.parametrize(
    ("family", "published"),
    [
        ("bert", "BertForTokenClassification"),
        ("roberta", "RobertaForTokenClassification"),
        ("modernbert", "ModernBertForTokenClassification"),
    ],
)
def test_the_head_is_that_of_the_family(family, published):
    model = peers.peer(published, family, num_labels=5)
    shape = {"vocab_size": 99, "hidden_size": 32, "num_layers": 1, "num_heads": 4, "intermediate_size": 64}
    options = {"bias": False, "norm_bias": False, "norm_eps": 1e-5} if family == "modernbert" else {}
    config = EncoderConfig(family=family, max_position_embeddings=64, **shape, **options)
    head = build_token_classification_head(config, 5)
    own = {"classifier": model.classifier} | ({"transform": model.head} if family == "modernbert" else {})
    weights = {f"{part}.{name}": value for part, module in own.items() for name, value in module.state_dict().items()}
    head.load_state_dict(weights, strict=True)
    hidden_states = torch.randn(9, 32)
    expected = model.classifier(model.head(hidden_states) if family == "modernbert" else hidden_states)
    torch.testing.assert_close(head(hidden_states, peers.pack(peers.sequences((4, 5))))["logits"], expected)
