"""What several systems are built of: networks, families of guides, likelihoods, and the mathematics of graphs."""
