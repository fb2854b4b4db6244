"""Putting the layer into a trainer that exists: where it can go, how it gets there, and the handle."""
