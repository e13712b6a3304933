"""The package's repository, the error for an extra that is not installed, and the versions of packages."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

# The one place in the library that names the repository; pyproject.toml, CITATION.cff and README.md repeat it, and a
# test compares them.
REPOSITORY = "https://github.com/st-prompteol/st_prompteol"


def requirement(extra: str | None = None) -> str:
    """Returns the requirement for `pip install` of this package, which is not on a package index.

    Args:
        extra: The extra to install. Defaults to None: no extra.

    Example:
        >>> print(requirement("eval"))
        st-prompteol[eval] @ git+https://github.com/st-prompteol/st_prompteol
    """
    return f"st-prompteol{f'[{extra}]' if extra else ''} @ git+{REPOSITORY}"


def missing_extra(what: str, package: str, extra: str) -> ImportError:
    """Returns the error for a missing package that an extra installs.

    Args:
        what: The feature that needs the package.
        package: The name of the package.
        extra: The name of the extra.

    Example:
        >>> print(missing_extra("A plot", "matplotlib", "eval"))  # doctest: +ELLIPSIS
        A plot needs the package matplotlib, of the extra eval: pip install 'st-prompteol[eval] @ git+https://...
    """
    return ImportError(
        f"{what} needs the package {package}, of the extra {extra}: pip install '{requirement(extra)}', or in a "
        f"checkout pip install '.[{extra}]'."
    )


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Returns the versions of those packages that are installed.

    Args:
        packages: The names of the packages.

    Example:
        >>> list(versions_of(["torch", "no-such-package"]))
        ['torch']
    """
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
