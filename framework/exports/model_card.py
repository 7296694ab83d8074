"""Model card (README.md) of an export: description, origin, metrics and usage.

The card states only facts from the run folder. Unknown facts are omitted or marked as not stated. The front matter
follows the Hugging Face Hub (https://huggingface.co/docs/hub/model-cards).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from framework.exports.library_examples import LIBRARY_EXAMPLES
from framework.models.config import EncoderConfig
from framework.published.encoder_decoder import CLASS_NAME as ENCODER_DECODER
from framework.published.families import FAMILIES
from framework.published.kinds import (
    MULTIPLE_CHOICE,
    QUESTION_ANSWERING,
    RERANKING,
    TOKEN_CLASSIFICATION,
    HeadKind,
)
from framework.published.own_class import MODELING_FILE, auto_class

CARD_FILE = "README.md"
_MAX_LABELS = 100
FOLDER = "path/to/this/folder"
"""Placeholder for the folder of the export in examples."""
ARGMAX_ENTITY_F1 = "entity F1 of each word's largest score"
"""Label of the entity metric that ignores the rules of BIO."""


@dataclass(frozen=True)
class RunFacts:
    """Facts of a run folder for the model card, as displayed text.

    Attributes:
        name: Run id.
        about: Rows of the table on the origin: task, data, weights.
        training: Rows of the table on the training.
        metrics: Validation metrics of exactly these weights, by label; empty if they were not measured.
        versions: Versions of the libraries used in training.
        audits: Results of audits of exactly these weights, by name of the audit; empty if there are none.
        base_model: Hugging Face Hub name of the weights that the run started from; None for other weights.
        predicts: True if `framework.predict` supports the task.
        privacy: Rows of the table on the privacy of the training rows; empty if the run was not private.
        windows: Combination of the scores of a long text's windows; None: long texts are truncated.
    """

    name: str
    about: Mapping[str, str]
    training: Mapping[str, str]
    metrics: Mapping[str, str]
    versions: Mapping[str, str]
    audits: Mapping[str, str] = field(default_factory=dict)
    base_model: str | None = None
    predicts: bool = False
    privacy: Mapping[str, str] = field(default_factory=dict)
    windows: str | None = None


@dataclass(frozen=True)
class ExportedModel:
    """Facts of the exported model for its card.

    Attributes:
        config: Encoder configuration.
        class_name: Name of the class that transformers loads.
        head_kind: `Task.head_kind`.
        kind: Kind of head that other libraries support; None if they support only the encoder.
        without_class: Names of the head's tensors that the class does not hold.
        labels: Label names in the order of the scores; empty if the head has none.
    """

    config: EncoderConfig
    class_name: str
    head_kind: str
    kind: HeadKind | None
    without_class: Sequence[str] = ()
    labels: Sequence[str] = ()

    @property
    def is_sentence_transformer(self) -> bool:
        """Returns True if a class of sentence-transformers loads the export."""
        return self.kind is not None and self.kind.name in LIBRARY_EXAMPLES


def model_card(model: ExportedModel, facts: RunFacts) -> str:
    """Returns the text of the card."""
    kind = model.head_kind.replace("_", " ")
    sections = [
        _front_matter(model, facts),
        f"# {_escape(facts.name)}",
        f"A {_description(model.config)}, with a head for {_escape(kind)}, trained with Cloze.",
        _table(("", ""), facts.about),
        *_labels(model.labels),
        "## Metrics",
        *_metrics(facts.metrics),
        *_audits(facts.audits),
        "## Training",
        _table(("", ""), facts.training),
        *(["## Privacy", _table(("", ""), facts.privacy)] if facts.privacy else []),
        "## Use",
        *_usage(model, facts),
        "## Library versions in training",
        _table(("library", "version"), facts.versions),
        "## Licence",
        "Licence: not stated.",
    ]
    return "\n\n".join(sections) + "\n"


def onnx_section(file: str, input_names: Sequence[str], output_names: Sequence[str], more: str = "") -> str:
    """Returns the section on the ONNX file, to append to the card; `more` is a sentence on its outputs."""
    inputs, outputs = (", ".join(_code(name) for name in names) for names in (input_names, output_names))
    sizes = "(float32) to {} of pictures of the size in `preprocessor_config.json`, for any batch size"
    words = "(int64) to {}, for any batch size and sequence length"
    kinds = (sizes if "pixel_values" in input_names else words).format(outputs)
    return f"\n## ONNX\n\n{_code(file)} maps {inputs} {kinds}.{more and f' {more}'}\n"


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


def _description(config: EncoderConfig) -> str:
    return (
        f"transformer encoder of the {config.family} family (layers: {config.num_layers}, hidden size: "
        f"{config.hidden_size}, vocabulary size: {config.vocab_size:,})"
    )


def _labels(labels: Sequence[str]) -> list[str]:
    if not labels:
        return []
    listed = ", ".join(_code(label) for label in labels[:_MAX_LABELS])
    more = len(labels) - _MAX_LABELS
    return [
        "## Labels",
        f"Number of labels: {len(labels)}. In the order of the scores: {listed}"
        + (f" and {more} more." if more > 0 else "."),
    ]


def _metrics(metrics: Mapping[str, str]) -> list[str]:
    if not metrics:
        return ["The run folder has no validation metrics of these weights."]
    return ["Measured with these weights on the validation split of the run:", _table(("metric", "value"), metrics)]


def _audits(audits: Mapping[str, str]) -> list[str]:
    if not audits:
        return []
    return ["## Audits", "Measured with these weights by `framework.audit`:", _table(("audit", "result"), audits)]


def _usage(model: ExportedModel, facts: RunFacts) -> Iterable[str]:
    auto = auto_class(model.class_name)
    loaded, trust = auto or model.class_name, ", trust_remote_code=True" if auto is not None else ""
    yield f"Load the model with transformers, as `{model.class_name}`:"
    reads_pictures = FAMILIES[model.config.family].pixels is not None
    reader = "AutoImageProcessor" if reads_pictures else "AutoTokenizer"
    encode = ('inputs = tokenizer("A text.", return_tensors="pt", truncation=True)',)
    lines = [
        f"from transformers import {reader}, {loaded}",
        "",
        f'{"processor" if reads_pictures else "tokenizer"} = {reader}.from_pretrained("{FOLDER}"{trust})',
        f'model = {loaded}.from_pretrained("{FOLDER}"{trust}).eval()',
        *(_PICTURE if reads_pictures else _EXAMPLES.get(model.head_kind, encode)),
        _CALLS.get(model.class_name, "outputs = model(**inputs)"),
    ]
    yield _block("python", lines)
    if reads_pictures:
        yield (
            "Cloze keeps the aspect ratio of pictures, and the processor of transformers scales them to a square. For "
            "the outputs of Cloze, pass pixels of other sizes with `interpolate_pos_encoding=True`."
        )
    if auto is not None:
        yield (
            f"transformers has no class with this head. `{MODELING_FILE}` in this folder defines one, and transformers "
            "runs this file only with `trust_remote_code=True`. A pipeline accepts the same argument. Without the "
            "argument, or with another class, loading fails."
        )
    if model.kind is not None:
        yield from _pipeline_usage(model.kind, trust, facts.windows)
    if model.kind is not None and model.kind.reads_words:
        yield from _words_usage(facts)
    if model.without_class:
        yield from _missing_head(model, facts)
    yield from _sentence_transformers_usage(model, trust)
    yield (
        "Predict with Cloze, or start another run from these weights:"
        if facts.predicts
        else "Start another run of Cloze from these weights:"
    )
    start = f"python -m framework.train init_from={FOLDER} model=from_weights tokenizer=from_weights task=... data=..."
    text = _TEXTS.get(model.head_kind, "A text.")
    given = _FILES.get(model.head_kind, f'text="{text}"')
    predict = [f"python -m framework.predict run={FOLDER} {given}"] if facts.predicts else []
    yield _block("bash", [*predict, start])


def _sentence_transformers_usage(model: ExportedModel, trust: str) -> Iterable[str]:
    """Shows the call of sentence-transformers, if it loads the export."""
    if model.kind is not None and model.is_sentence_transformer:
        title, name, lines = LIBRARY_EXAMPLES[model.kind.name]
        yield title
        yield _block(
            "python", [f"from sentence_transformers import {name}", "", f'model = {name}("{FOLDER}"{trust})', *lines]
        )


def _pipeline_usage(kind: HeadKind, trust: str, windows: str | None) -> Iterable[str]:
    """Describes truncation. The pipelines in `_PIPELINES` truncate only with an argument."""
    if windows is not None:
        yield (
            "The model was trained on windows of long texts, whose scores are combined by the "
            f"{'mean' if windows == 'mean' else 'maximum'}. The class of transformers scores one sequence, and "
            "truncates longer texts. Use `framework.predict`, or combine the logits of the windows."
        )
    elif kind.truncates_texts:
        yield "Cloze truncates texts that are too long. transformers does so only with `truncation=True`."
    if kind.pipeline_tag in _PIPELINES:
        argument, text = _PIPELINES[kind.pipeline_tag]
        yield "Use a pipeline with truncation. Without it, texts longer than the model's maximum length fail:"
        lines = [
            "from transformers import pipeline",
            "",
            f'pipe = pipeline("{kind.pipeline_tag}", "{FOLDER}", {argument}{trust})',
            f"predictions = pipe({text})",
        ]
        yield _block("python", lines)


def _missing_head(model: ExportedModel, facts: RunFacts) -> Iterable[str]:
    """Describes the tensors that the class of transformers lacks, and names the file that holds them."""
    names = ", ".join(_code(name) for name in model.without_class)
    if model.kind is not None:
        yield (
            f"No class of transformers has the complete head. `cloze_heads.safetensors` holds {names}, which only "
            "Cloze reads."
        )
        return
    scores = " Only `framework.predict` computes its predictions." if facts.predicts else ""
    yield (
        f"No class of transformers has this head, so `AutoModel` loads the encoder without it.{scores} "
        f"`cloze_heads.safetensors` holds {names}, which only Cloze reads. Classes with a head, such as "
        "`AutoModelForSequenceClassification`, fail to load this folder, because it contains empty tensors under the "
        "names of their weights. To fine-tune a new head there, pass `ignore_mismatched_sizes=True`."
    )


def _words_usage(facts: RunFacts) -> Iterable[str]:
    """Describes how entities from a transformers pipeline differ from those of `framework.predict`."""
    measured = f" (above: {ARGMAX_ENTITY_F1})" if ARGMAX_ENTITY_F1 in facts.metrics else ""
    yield (
        "The model was trained on words, with a space before each, and labels the first token of each word. "
        "`framework.predict` decodes labels under the rules of BIO. A transformers pipeline uses the largest score of "
        f"each token instead, which finds entities less accurately{measured}. Use "
        '`pipeline("token-classification", ..., aggregation_strategy="first")`, or pass words with '
        "`is_split_into_words=True`."
    )


_EXAMPLES = {
    QUESTION_ANSWERING.name: (
        'inputs = tokenizer("A question?", "A text with its answer.", return_tensors="pt", truncation="only_second")',
    ),
    TOKEN_CLASSIFICATION.name: (
        'inputs = tokenizer(["A", "text", "."], is_split_into_words=True, return_tensors="pt", truncation=True)',
    ),
    RERANKING.name: (
        'inputs = tokenizer(["A query"] * 2, ["A document.", "Another."], return_tensors="pt", padding=True, '
        "truncation=True)",
    ),
    MULTIPLE_CHOICE.name: (
        'inputs = tokenizer(["A text."] * 2, ["One choice.", "Another one."], return_tensors="pt", padding=True, '
        "truncation=True)",
        "inputs = {name: tensor[None] for name, tensor in inputs.items()}",
    ),
}


_FILES = {
    **dict.fromkeys(("image_classification", "image_text_classification"), "input=pictures.csv"),
    RERANKING.name: "input=queries.jsonl",
}
"""Input of prediction by kind of head, if its rows are no single texts."""

_PICTURE = (
    "from PIL import Image",
    'inputs = processor(Image.open("picture.png").convert("RGB"), return_tensors="pt")',
)

_PIPELINES = {
    "text-classification": ("truncation=True", '"A text."'),
    "fill-mask": ('tokenizer_kwargs={"truncation": True}', 'f"A {pipe.tokenizer.mask_token}."'),
}
"""Argument that enables truncation, and an example input, by pipeline task. Other pipelines truncate or split texts."""

_TEXTS = {"relation": "The <e1>dog</e1> sees the <e2>cat</e2>."}

_CALLS = {ENCODER_DECODER: "texts = tokenizer.batch_decode(model.generate(**inputs), skip_special_tokens=True)"}


def _table(header: tuple[str, str], rows: Mapping[str, str]) -> str:
    lines = [f"| {header[0]} | {header[1]} |", "|---|---|"]
    return "\n".join([*lines, *(f"| {_escape(name)} | {_escape(value)} |" for name, value in rows.items())])


def _block(language: str, lines: Sequence[str]) -> str:
    return "\n".join([f"```{language}", *lines, "```"])


def _escape(text: str) -> str:
    """Escapes all characters that Markdown or HTML would interpret, and joins lines."""
    return "".join(f"\\{char}" if char in "\\`*_|[]<>#" else char for char in " ".join(text.split()))


def _code(text: str) -> str:
    """Formats any text as inline code in one line."""
    line = " ".join(text.split()) or " "
    return f"`` {line} ``" if "`" in line else f"`{line}`"
