"""Batch jobs: a model on many images, by several processes or machines, with each input once in the output."""
