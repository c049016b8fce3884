"""Everything that is read from or written to other systems: one room a family of systems, which alone imports it."""
