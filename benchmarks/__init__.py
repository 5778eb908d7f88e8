"""One script for each claim, by the rooms of the library: `python -m benchmarks.ROOM.SCRIPT` in the checkout."""
