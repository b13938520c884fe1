"""What a backbone is used for: one file per task, each with the model around the backbone and its head."""
