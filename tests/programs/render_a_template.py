"""A template needs the standard library only."""

import sys

from st_prompteol.prompt.template import PromptTemplate

PromptTemplate().render("x")
assert not {"torch", "transformers", "jinja2", "numpy"} & set(sys.modules)
