"""What surrounds one entry: learning a policy, reading a response, edges of a cyclic graph."""
