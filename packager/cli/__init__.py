"""The command `package`.

`main` has the group of commands and the exit status; every other module has one group of commands or one helper.
"""

from packager.cli.main import main

__all__ = ["main"]
