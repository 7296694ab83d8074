"""README.md of an export: what the model is, from what it was made, what it reached, how it is loaded.

Only what the run folder knows; what nobody told is left out or said to be not stated. The front matter is that of the
Hugging Face Hub (https://huggingface.co/docs/hub/model-cards).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from framework.models.config import EncoderConfig
from framework.published.encoder_decoder import CLASS_NAME as ENCODER_DECODER
from framework.published.kinds import (
    EMBEDDING,
    MULTIPLE_CHOICE,
    QUESTION_ANSWERING,
    TOKEN_CLASSIFICATION,
    HeadKind,
)
from framework.published.own_class import MODELING_FILE, auto_class

CARD_FILE = "README.md"
_MAX_LABELS = 100
FOLDER = "path/to/this/folder"
"""Stands in the examples for where the export is."""
ARGMAX_ENTITY_F1 = "entity F1 of each word's largest score"
"""Label of the entity metric without the rules of BIO."""


@dataclass(frozen=True)
class RunFacts:
    """What a run folder knows of the model, for its card; every value is text that is shown.

    Attributes:
        name: Id of the run.
        about: Rows of the table of origin: task, data, weights.
        training: Rows of the table of training.
        metrics: Validation metrics of these very weights by their labels; empty: they were not measured.
        versions: Of the libraries that trained it.
        base_model: Name on the Hugging Face Hub of the weights that it started from, if they are from there.
        predicts: `framework.predict` has predictions of its task.
    """

    name: str
    about: Mapping[str, str]
    training: Mapping[str, str]
    metrics: Mapping[str, str]
    versions: Mapping[str, str]
    base_model: str | None = None
    predicts: bool = False


@dataclass(frozen=True)
class ExportedModel:
    """What the export knows of the model, for its card.

    Attributes:
        config: Of the encoder.
        class_name: Of transformers.
        head_kind: `Task.head_kind`.
        kind: What other libraries know of the head; None: only its encoder.
        without_class: Names of the head's tensors that the class cannot hold.
        labels: In the order of scores; empty where the head has none.
    """

    config: EncoderConfig
    class_name: str
    head_kind: str
    kind: HeadKind | None
    without_class: Sequence[str] = ()
    labels: Sequence[str] = ()

    @property
    def is_sentence_transformer(self) -> bool:
        """The files of that library are there."""
        return self.kind is EMBEDDING


def model_card(model: ExportedModel, facts: RunFacts) -> str:
    """The whole text."""
    kind = model.head_kind.replace("_", " ")
    sections = [
        _front_matter(model, facts),
        f"# {_plain(facts.name)}",
        f"A {_shape(model.config)}, with a head for {_plain(kind)}, trained with Cloze.",
        _table(("", ""), facts.about),
        *_labels(model.labels),
        "## Metrics",
        *_metrics(facts.metrics),
        "## Training",
        _table(("", ""), facts.training),
        "## Use",
        *_usage(model, facts),
        "## Versions of the libraries that trained it",
        _table(("library", "version"), facts.versions),
        "## Licence",
        "Licence: not stated.",
    ]
    return "\n\n".join(sections) + "\n"


def onnx_section(file: str, input_names: Sequence[str], output_names: Sequence[str]) -> str:
    """What the card says of the same model in ONNX; to be put at its end."""
    inputs, outputs = (", ".join(_code(name) for name in names) for names in (input_names, output_names))
    return f"\n## ONNX\n\n{_code(file)} takes {inputs} (int64) and gives {outputs}, at any batch size and length.\n"


def _front_matter(model: ExportedModel, facts: RunFacts) -> str:
    tags = ["cloze", model.config.family, model.head_kind.replace("_", "-")]
    content: dict[str, Any] = {
        "library_name": "sentence-transformers" if model.is_sentence_transformer else "transformers",
        "tags": list(dict.fromkeys(tags)),
    }
    if model.kind is not None and model.kind.pipeline_tag is not None:
        content["pipeline_tag"] = model.kind.pipeline_tag
    if facts.base_model is not None:
        content["base_model"] = facts.base_model
    return f"---\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}---"


def _shape(config: EncoderConfig) -> str:
    return (
        f"transformer encoder of the {config.family} family (layers: {config.num_layers}, hidden size: "
        f"{config.hidden_size}, words: {config.vocab_size:,})"
    )


def _labels(labels: Sequence[str]) -> list[str]:
    if not labels:
        return []
    shown = ", ".join(_code(label) for label in labels[:_MAX_LABELS])
    more = len(labels) - _MAX_LABELS
    return [
        "## Labels",
        f"{len(labels)}, in the order of scores: {shown}" + (f" and {more} more." if more > 0 else "."),
    ]


def _metrics(metrics: Mapping[str, str]) -> list[str]:
    if not metrics:
        return ["The run folder has no validation of these very weights."]
    return ["On the validation split of the run, with these weights:", _table(("metric", "value"), metrics)]


def _usage(model: ExportedModel, facts: RunFacts) -> Iterable[str]:
    auto = auto_class(model.class_name)
    loaded, trust = auto or model.class_name, ", trust_remote_code=True" if auto is not None else ""
    yield f"With transformers, as `{model.class_name}`:"
    lines = [
        f"from transformers import AutoTokenizer, {loaded}",
        "",
        f'tokenizer = AutoTokenizer.from_pretrained("{FOLDER}"{trust})',
        f'model = {loaded}.from_pretrained("{FOLDER}"{trust}).eval()',
        *_EXAMPLES.get(model.head_kind, ('inputs = tokenizer("A text.", return_tensors="pt", truncation=True)',)),
        _CALLS.get(model.class_name, "outputs = model(**inputs)"),
    ]
    yield _block("python", lines)
    if auto is not None:
        yield (
            f"transformers has no class with this head. `{MODELING_FILE}` in this folder has it, and transformers runs "
            "it only with `trust_remote_code=True`; a pipeline takes the same argument. Without it, or with another "
            "class named by hand, the model is not loaded."
        )
    if model.kind is not None:
        yield from _pipeline_usage(model.kind, trust)
    if model.kind is not None and model.kind.reads_words:
        yield from _words_usage(facts)
    if model.without_class:
        yield from _missing_head(model, facts)
    if model.is_sentence_transformer:
        yield "With sentence-transformers:"
        yield _block(
            "python",
            [
                "from sentence_transformers import SentenceTransformer",
                "",
                f'embeddings = SentenceTransformer("{FOLDER}").encode(["A text.", "Another text."])',
            ],
        )
    yield "With Cloze:"
    start = f"python -m framework.train init_from={FOLDER} model=from_weights tokenizer=from_weights task=... data=..."
    text = _TEXTS.get(model.head_kind, "A text.")
    predict = [f'python -m framework.predict run={FOLDER} text="{text}"'] if facts.predicts else []
    yield _block("bash", [*predict, start])


def _pipeline_usage(kind: HeadKind, trust: str) -> Iterable[str]:
    """Describes truncation, which the pipelines of `_PIPELINES` leave out unless an argument asks for it."""
    if kind.cuts_texts:
        yield "Cloze truncates longer texts. transformers does so only with `truncation=True`."
    if kind.pipeline_tag in _PIPELINES:
        argument, text = _PIPELINES[kind.pipeline_tag]
        yield "In a pipeline, which otherwise fails at texts longer than the model:"
        lines = [
            "from transformers import pipeline",
            "",
            f'pipe = pipeline("{kind.pipeline_tag}", "{FOLDER}", {argument}{trust})',
            f"predictions = pipe({text})",
        ]
        yield _block("python", lines)


def _missing_head(model: ExportedModel, facts: RunFacts) -> Iterable[str]:
    """Describes what the class of transformers lacks, and where it is."""
    names = ", ".join(_code(name) for name in model.without_class)
    if model.kind is not None:
        yield f"No class of transformers has its whole head; for Cloze, `cloze_heads.safetensors` has {names}."
        return
    scores = " Its predictions come from `framework.predict` only." if facts.predicts else ""
    yield (
        f"No class of transformers has this head, so `AutoModel` loads the encoder without it.{scores} For Cloze, "
        f"`cloze_heads.safetensors` has {names}. Classes with a head, such as `AutoModelForSequenceClassification`, "
        "refuse to load the folder, because its empty tensors have other sizes than theirs. To fine-tune a new head "
        "there, pass `ignore_mismatched_sizes=True`."
    )


def _words_usage(facts: RunFacts) -> Iterable[str]:
    """Describes how entities outside of Cloze differ from those of `framework.predict`."""
    measured = f" (above: {ARGMAX_ENTITY_F1})" if ARGMAX_ENTITY_F1 in facts.metrics else ""
    yield (
        "The model was trained on words, with a space before each, and gives a label to the first token of a word. "
        "`framework.predict` decodes labels under the rules of BIO. A transformers pipeline takes the largest score of "
        f"each token instead, which finds entities less well{measured}: use "
        '`pipeline("token-classification", ..., aggregation_strategy="first")`, or words with '
        "`is_split_into_words=True`."
    )


_EXAMPLES = {
    QUESTION_ANSWERING.name: (
        'inputs = tokenizer("A question?", "A text with its answer.", return_tensors="pt", truncation="only_second")',
    ),
    TOKEN_CLASSIFICATION.name: (
        'inputs = tokenizer(["A", "text", "."], is_split_into_words=True, return_tensors="pt", truncation=True)',
    ),
    MULTIPLE_CHOICE.name: (
        'inputs = tokenizer(["A text."] * 2, ["One choice.", "Another one."], return_tensors="pt", padding=True, '
        "truncation=True)",
        "inputs = {name: tensor[None] for name, tensor in inputs.items()}",
    ),
}


_PIPELINES = {
    "text-classification": ("truncation=True", '"A text."'),
    "fill-mask": ('tokenizer_kwargs={"truncation": True}', 'f"A {pipe.tokenizer.mask_token}."'),
}
"""Argument with which a pipeline truncates, and its input, by task of the pipeline; others truncate or are split."""

_TEXTS = {"relation": "The <e1>dog</e1> sees the <e2>cat</e2>."}

_CALLS = {ENCODER_DECODER: "texts = tokenizer.batch_decode(model.generate(**inputs), skip_special_tokens=True)"}


def _table(header: tuple[str, str], rows: Mapping[str, str]) -> str:
    lines = [f"| {header[0]} | {header[1]} |", "|---|---|"]
    return "\n".join([*lines, *(f"| {_plain(name)} | {_plain(value)} |" for name, value in rows.items())])


def _block(language: str, lines: Sequence[str]) -> str:
    return "\n".join([f"```{language}", *lines, "```"])


def _plain(text: str) -> str:
    """Text in which no sign means something to Markdown or HTML, in one line."""
    return "".join(f"\\{sign}" if sign in "\\`*_|[]<>#" else sign for sign in " ".join(text.split()))


def _code(text: str) -> str:
    """Text as code, whatever it holds, in one line."""
    shown = " ".join(text.split()) or " "
    return f"`` {shown} ``" if "`" in shown else f"`{shown}`"
