"""`python -m ulmfit_fast` is the program `ulmfit-fast`."""

from ulmfit_fast.cli.program import main

if __name__ == "__main__":
    main()
