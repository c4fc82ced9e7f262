"""Data sets as the trainer sees them: order, sampler, files, loading."""
