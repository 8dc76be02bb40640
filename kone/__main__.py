"""`python -m kone`."""

from kone.cli import main

if __name__ == "__main__":
    main()
