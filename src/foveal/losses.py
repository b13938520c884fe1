"""The public names of the training losses; :mod:`foveal.training.losses` defines them."""

from .training.losses import LOSSES as LOSSES
from .training.losses import SegmentationLoss as SegmentationLoss
from .training.losses import boundary as boundary
from .training.losses import cross_entropy as cross_entropy
from .training.losses import dice as dice
from .training.losses import focal as focal
from .training.losses import jaccard as jaccard
from .training.losses import lovasz as lovasz
from .training.losses import mask_iou as mask_iou
from .training.losses import mask_loss as mask_loss
from .training.losses import ohem as ohem
