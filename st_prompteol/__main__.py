"""`python -m st_prompteol`: the command `st-prompteol`."""

from st_prompteol.cli import app

if __name__ == "__main__":
    app(prog_name="st-prompteol")
