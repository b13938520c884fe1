"""The HTTP service: models behind an address, with a bounded queue, batches, limits and metrics.

:func:`foveal.serving.server.serve` is where a service starts: that of ``foveal serve``, and of ``foveal demo --page``.
"""
