"""`python -m sampan`: the command line, for those who have the package but not the script."""

from sampan.cli.main import run

run()
