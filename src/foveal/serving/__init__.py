"""The HTTP service: models behind an address, with a bounded queue, batches, limits and metrics.

Its modules need the extra ``serve`` (FastAPI, uvicorn); :func:`foveal.serving.server.serve` is where a service starts.
"""
