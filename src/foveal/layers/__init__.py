"""Building blocks that the model families share. Nothing here knows a model, a task or a file."""
