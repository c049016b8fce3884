"""How transforms are put together into jobs, and the command line. The only place that knows runners."""
