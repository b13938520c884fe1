"""Exact computation of networks on images larger than memory, piece by piece over maps kept on disk."""
