"""Allocations under budgets."""
