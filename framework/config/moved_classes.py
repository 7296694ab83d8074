"""Names of configurable classes that moved to another module, so that older run folders and configs still work."""

from typing import Any

_TASKS = "framework.tasks."
_EXAMPLES = "framework.data.examples."
_FORMER = {
    f"{_TASKS}embedding.data.TextPairData": f"{_EXAMPLES}text_pairs.TextPairData",
    f"{_TASKS}multiple_choice.data.ChoiceData": f"{_EXAMPLES}choices.ChoiceData",
    f"{_TASKS}question_answering.data.QuestionData": f"{_EXAMPLES}questions.QuestionData",
    f"{_TASKS}recommendation.data.InteractionData": f"{_EXAMPLES}interactions.InteractionData",
    f"{_TASKS}relation_extraction.data.RelationData": f"{_EXAMPLES}relations.RelationData",
    f"{_TASKS}token_classification.data.TaggedData": f"{_EXAMPLES}tagged.TaggedData",
    f"{_TASKS}translation.data.ParallelTextData": f"{_EXAMPLES}parallel_text.ParallelTextData",
}
"""Former names by current name."""

_CURRENT = {former: current for current, former in _FORMER.items()}


def current_name(name: str) -> str:
    """Returns the name under which a class can be imported now."""
    return _CURRENT.get(name, name)


def former_name(value: Any) -> Any:
    """Returns the former name of a moved class, from which identities are computed, and other values unchanged."""
    return _FORMER.get(value, value) if isinstance(value, str) else value
