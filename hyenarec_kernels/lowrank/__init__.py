"""The block low-rank form of a smooth filter, which the CPU's and the GPU's plans share."""
