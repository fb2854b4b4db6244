"""A script without a patch: the layer in its syntax tree, and where it can go."""
