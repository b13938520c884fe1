"""Edifice's ``EfficientViT`` and ``MambaVision`` by the names, options and shapes of that library."""

from .models import EfficientViT as EfficientViT
from .models import MambaVision as MambaVision
