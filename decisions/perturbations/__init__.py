"""What perturbations do to the latents of cells: which they shift, by how much, and which genes follow."""
