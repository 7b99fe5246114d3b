"""Run the command `package` as `python -m packager`."""

from packager.cli import main

main()
