"""Count parameters and multiply-accumulates: the public names of :mod:`foveal.measuring.costs`."""

from .measuring.costs import Costs as Costs
from .measuring.costs import convolution as convolution
from .measuring.costs import count as count
from .measuring.costs import count_tokens as count_tokens
from .measuring.costs import depthwise_separable as depthwise_separable
from .measuring.costs import fused_inverted_residual as fused_inverted_residual
from .measuring.costs import inverted_residual as inverted_residual
from .measuring.costs import separable_reduction as separable_reduction
from .measuring.costs import squeeze_excite as squeeze_excite
