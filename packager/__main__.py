"""`python -m packager` is the command `package`."""

from packager.cli import main

main()
