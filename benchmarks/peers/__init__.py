"""The peers of the benchmarks. Each is a script that runs in an environment of its own and prints one line of JSON."""
