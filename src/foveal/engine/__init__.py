"""The native CPU engine: a plan of fused operations, and the compiled library that runs it. No torch is needed here."""
