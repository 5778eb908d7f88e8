"""Is the model the one that was meant, and how good is it: recovery of a known truth, likelihoods, clusters, graphs."""
