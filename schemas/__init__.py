"""What things are: specification, split, span and block, dead letters, fingerprint, errors. Imports nothing of ours."""
