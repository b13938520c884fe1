"""Round weights to int8 so that the layer's outputs change little, rather than its weights.

Each output channel has a scale. Weights are rounded one after another, and those that follow take up the error of those
before, as far as the inputs are correlated (Frantar et al., "Optimal Brain Compression", 2022, and "GPTQ", 2023). The
mean of the error that is left is taken from the bias (Nagel et al., "Data-free quantization through weight
equalization and bias correction", 2019).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .layer_inputs import Array, Layer, Moments

_LARGEST = 127  # integer: -128 is left out, so that a row and its negative are rounded alike
_SHRINKS = np.linspace(1.0, 0.5, 11)  # of a scale that are tried
_DAMPING = 0.01  # of the mean variance, added to each


@dataclass(frozen=True)
class Rounded:
    """The weights of a layer in int8.

    Attributes:
        codes: of the shape of the weights.
        scale: of each output channel.
        bias: what to add to the bias if the layer reads its input in float32; ``None``: it has no bias.
        bias_quantised: the same if it reads its input quantised.
    """

    codes: Array
    scale: Array
    bias: Array | None
    bias_quantised: Array | None


def round_weights(layer: Layer, moments: Moments | None) -> Rounded:
    """Round the weights of a layer; without moments of its inputs, to the nearest integers."""
    if moments is None:
        rows = np.moveaxis(layer.weights, layer.axis, 0)
        scale = _scales(np.abs(rows.reshape(len(rows), -1)).max(1))
        codes = np.rint(rows / scale.reshape(-1, *[1] * (rows.ndim - 1)))
        codes = np.ascontiguousarray(np.moveaxis(codes, 0, layer.axis))
        return Rounded(codes.astype(np.int8), scale.astype(np.float32), None, None)
    matrix = layer.matrix().astype(np.float64)
    covariance = moments.covariance.astype(np.float64)
    diagonal = np.arange(covariance.shape[1])
    variance = covariance[:, diagonal, diagonal].mean(1, keepdims=True)
    covariance[:, diagonal, diagonal] += _DAMPING * variance + np.finfo(np.float32).tiny
    scale, nearest = _nearest(matrix, covariance)
    compensated = _compensated(matrix, scale, covariance)
    better = _error(compensated * scale - matrix, covariance) < _error(nearest * scale - matrix, covariance)
    codes = np.where(better[..., None], compensated, nearest)
    bias = quantised = None
    if layer.bias:
        target = np.einsum("gok,gk->go", matrix, moments.mean)
        bias, quantised = (
            (target - np.einsum("gok,gk->go", codes * scale, mean)).reshape(-1).astype(np.float32)
            for mean in (moments.mean, moments.mean_quantised)
        )
    return Rounded(layer.like_weights(codes.astype(np.int8)), scale.reshape(-1).astype(np.float32), bias, quantised)


def _scales(largest: Array) -> Array:
    """Scales of channels by their largest weights, as numbers of float32."""
    return (np.where(largest > 0, largest, 1.0) / _LARGEST).astype(np.float32).astype(np.float64)


def _error(difference: Array, covariance: Array) -> Array:
    """Variance of the error of each output channel."""
    return np.einsum("gok,gok->go", difference @ covariance, difference)


def _nearest(matrix: Array, covariance: Array) -> tuple[Array, Array]:
    """The scale of each channel with the least error, and the nearest integers."""
    largest = np.abs(matrix).max(2, keepdims=True)
    scale = _scales(largest)
    codes = np.rint(matrix / scale)
    least = _error(codes * scale - matrix, covariance)
    for shrink in _SHRINKS[1:]:
        tried = _scales(largest * shrink)
        tried_codes = np.clip(np.rint(matrix / tried), -_LARGEST, _LARGEST)
        error = _error(tried_codes * tried - matrix, covariance)
        better = (error < least)[..., None]
        scale, codes = np.where(better, tried, scale), np.where(better, tried_codes, codes)
        least = np.minimum(least, error)
    return scale, codes


def _compensated(matrix: Array, scale: Array, covariance: Array) -> Array:
    """Integers, rounded in the order of decreasing variance of what they are multiplied with."""
    order = np.argsort(-np.einsum("gkk->gk", covariance), axis=1)
    sorted_covariance = np.take_along_axis(covariance, order[:, :, None], 1)
    sorted_covariance = np.take_along_axis(sorted_covariance, order[:, None], 2)
    rest = np.take_along_axis(matrix, order[:, None], 2)
    factor = np.linalg.cholesky(np.linalg.inv(sorted_covariance)).swapaxes(1, 2)  # upper
    codes = np.empty_like(rest)
    for k in range(rest.shape[2]):
        codes[:, :, k] = np.clip(np.rint(rest[:, :, k] / scale[:, :, 0]), -_LARGEST, _LARGEST)
        error = (rest[:, :, k] - codes[:, :, k] * scale[:, :, 0]) / factor[:, k, k, None]
        rest[:, :, k + 1 :] -= error[:, :, None] * factor[:, k, None, k + 1 :]
    result = np.empty_like(codes)
    np.put_along_axis(result, np.broadcast_to(order[:, None], codes.shape), codes, 2)
    return result
