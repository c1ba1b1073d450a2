"""The program `ulmfit-fast`: program.py lists its commands, app.py has what they share."""
