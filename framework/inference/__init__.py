"""Tools of the commands that use a trained model: rows to predict, files of predictions and vectors, explanations."""
