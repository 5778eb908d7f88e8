"""Causal graphs: reading them off a fit, comparing them, and cells under interventions."""
