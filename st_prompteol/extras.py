"""Where the package comes from, and the error for an extra that is not installed."""

from __future__ import annotations

# The one place in the library that names the repository; pyproject.toml, CITATION.cff and README.md repeat it, and a
# test compares them.
REPOSITORY = "https://github.com/st-prompteol/st_prompteol"


def requirement(extra: str | None = None) -> str:
    """Returns what `pip install` takes to install this package, which is on no package index.

    Args:
        extra: The extra to install with it. Defaults to None: no extra.

    Example:
        >>> print(requirement("eval"))
        st-prompteol[eval] @ git+https://github.com/st-prompteol/st_prompteol
    """
    return f"st-prompteol{f'[{extra}]' if extra else ''} @ git+{REPOSITORY}"


def missing_extra(what: str, package: str, extra: str) -> ImportError:
    """Returns the error for a package that only an extra installs.

    Args:
        what: What needs it.
        package: Its name.
        extra: The extra.

    Example:
        >>> print(missing_extra("A plot", "matplotlib", "eval"))  # doctest: +ELLIPSIS
        A plot needs the package matplotlib, of the extra eval: pip install 'st-prompteol[eval] @ git+https://...
    """
    return ImportError(
        f"{what} needs the package {package}, of the extra {extra}: pip install '{requirement(extra)}', or in a "
        f"checkout pip install '.[{extra}]'."
    )
