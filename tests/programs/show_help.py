"""Shows the help of commands; needs no PyTorch."""

import sys

from typer.testing import CliRunner

from st_prompteol.cli import app

for command in sys.argv[1:]:
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0, (command, result.output)
    assert "Usage: " in result.stdout
    assert not result.stderr
assert "torch" not in sys.modules
