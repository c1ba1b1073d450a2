"""`python -m ulmfit_fast` is the program `ulmfit-fast`."""

from ulmfit_fast.cli import main

if __name__ == "__main__":
    main()
