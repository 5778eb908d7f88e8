"""What representations of perturbations (profiles) say: who is alike, and does it agree with what is known."""
