"""`python -m aemd` is the command `aemd`."""

from aemd.cli.daemon import main

if __name__ == "__main__":
    main(prog_name="aemd")
