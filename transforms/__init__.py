"""What happens to a block: read, checked, tokenised, packed, inferred, labelled, written. Knows no runner."""
