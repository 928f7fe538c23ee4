"""``python -m pac_core.cli``: the same as ``pac``."""

from pac_core.cli.app import main

if __name__ == "__main__":
    main()
