"""`python -m models`: the command line where the script `mu2net` is not installed, as in a container."""

from models.cli import main

if __name__ == "__main__":
    main()
