"""What a set is worth: CMI under a pool, accuracy of what it teaches, files for other judges."""
