"""What an objective, a constraint or a mixture of guides buys, and what it costs."""
