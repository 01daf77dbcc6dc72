"""Text and media to an upper bound on the tokens a model reads."""
