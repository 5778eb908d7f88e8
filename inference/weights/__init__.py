"""Importance weights of any program: traces, densities, sums over discrete sites, k-hat."""
