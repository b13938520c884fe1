"""Building blocks that the model families share. Nothing here depends on a model, a task or a file."""
