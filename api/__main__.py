"""`python -m tagstream`: the command line."""

from tagstream.pipelines.cli.main import main

main()
