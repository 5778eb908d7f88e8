"""Are the answers right: false discovery rates, labels, genes that were not measured, policies, budgets."""
