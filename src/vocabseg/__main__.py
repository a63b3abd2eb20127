"""`python -m vocabseg` is the command line."""

from vocabseg.cli import main

main()
