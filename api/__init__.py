"""Models that read text at scale: from a file, a topic or a table to labels, with every row accounted for."""
