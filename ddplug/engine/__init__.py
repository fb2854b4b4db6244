"""How CMI and its gradient are computed for one batch: in pieces, compiled, or as a CUDA graph."""
