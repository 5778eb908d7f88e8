"""Generated cases: seeded calls, valid and not, of all that a user calls; `run.py` judges them and prints the tally."""
