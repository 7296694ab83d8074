"""Explanations of predictions: attributions of words, their faithfulness, attention, and influence of training rows."""
