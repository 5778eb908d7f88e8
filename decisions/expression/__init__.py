"""Decisions on expression: differential expression, denoised values, checks of the model."""
