"""The others in the race. Each is a script that runs in an environment of its own and prints one line of JSON."""
