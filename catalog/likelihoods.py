"""Likelihoods for programs of your own: those of `fieldguide.catalog.parts.likelihoods`, at the path to import."""

from fieldguide.catalog.parts.likelihoods import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial

__all__ = ["NegativeBinomial", "Poisson", "ZeroInflatedNegativeBinomial"]
