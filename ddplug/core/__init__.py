"""The layer itself: rounds, lambda, history. Knows no host."""
