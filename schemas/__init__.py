"""What things are: specification, split, span and block, output columns, errors. Imports nothing of ours."""
