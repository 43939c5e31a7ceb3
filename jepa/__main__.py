"""`python -m jepa` is the `jepa` command."""

from jepa.cli import main

if __name__ == "__main__":
    main()
