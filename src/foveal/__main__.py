"""``python -m foveal``, and what torchrun starts."""

from .cli import main

main()
