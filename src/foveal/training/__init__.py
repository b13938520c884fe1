"""Training: the loop, the jobs of the tasks, losses, and the folder of a run."""
