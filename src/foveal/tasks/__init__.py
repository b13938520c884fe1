"""Models for a task: one file per task, with the model around a backbone and its head, and how it is built."""
