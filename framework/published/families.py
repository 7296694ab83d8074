"""All families of published models that Cloze reads and exports, by `model_type` in config.json."""

import difflib
from collections.abc import Mapping
from typing import Any

from framework.errors import CheckpointError
from framework.published.bert import BERT
from framework.published.clip import CLIP, SIGLIP
from framework.published.deberta import DEBERTA
from framework.published.distilbert import DISTILBERT
from framework.published.electra import ELECTRA
from framework.published.eurobert import EUROBERT
from framework.published.family import Family
from framework.published.modernbert import MODERNBERT
from framework.published.mpnet import MPNET
from framework.published.neobert import NEOBERT
from framework.published.nomic import NOMIC_BERT
from framework.published.roberta import CAMEMBERT, ROBERTA, XLM_ROBERTA
from framework.published.vit import VIT

FAMILIES: dict[str, Family] = {
    "bert": BERT,
    "roberta": ROBERTA,
    "xlm-roberta": XLM_ROBERTA,
    "camembert": CAMEMBERT,
    "distilbert": DISTILBERT,
    "electra": ELECTRA,
    "mpnet": MPNET,
    "deberta-v2": DEBERTA,
    "modernbert": MODERNBERT,
    "nomic_bert": NOMIC_BERT,
    "eurobert": EUROBERT,
    "neobert": NEOBERT,
    "vit": VIT,
    "clip": CLIP,
    "siglip": SIGLIP,
}


def family_of(published: Mapping[str, Any], source: object) -> Family:
    """Returns the family of a published model.

    Args:
        published: Content of config.json.
        source: File that holds it, for messages.

    Raises:
        CheckpointError: The family is unknown; the message names all known ones and the nearest.
    """
    model_type = published.get("model_type")
    if model_type is None:
        model_type = _type_of_class(published)
    if isinstance(model_type, str) and model_type in FAMILIES:
        return FAMILIES[model_type]
    nearest = difflib.get_close_matches(str(model_type or ""), FAMILIES, n=1)
    hint = f"; the nearest name is {nearest[0]}" if nearest else ""
    raise CheckpointError(
        f"{source} has model_type={model_type!r}. Known families are {', '.join(FAMILIES)}{hint}. Choose a model of "
        "one of these families."
    )


def _type_of_class(published: Mapping[str, Any]) -> str | None:
    """Returns the family that the name of the class states. Folders of the first versions have no `model_type`."""
    name = str((published.get("architectures") or [""])[0])
    prefixes = {family.class_prefix: model_type for model_type, family in FAMILIES.items()}
    fitting = [prefix for prefix in prefixes if name.startswith((f"{prefix}For", f"{prefix}Model"))]
    return prefixes[fitting[0]] if fitting else None
