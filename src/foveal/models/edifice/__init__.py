"""Edifice's ``EfficientViT`` and ``MambaVision`` with the names, options and shapes of that library."""

from .models import EfficientViT as EfficientViT
from .models import MambaVision as MambaVision
