"""Print the oldest versions that pyproject.toml allows.

``python .ci/oldest.py build`` prints those of the build's requirements, and
``python .ci/oldest.py run EXTRA...`` those of the package's and of these extras.
"""

import re
import sys
import tomllib
from pathlib import Path

PYPROJECT = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())


def oldest(requirement: str) -> str:
    """Name and lowest version of a requirement such as "numpy>=1.26"."""
    found = re.fullmatch(r"([\w-]+)>=([\d.]+)", requirement)
    if not found:
        sys.exit(f"expected NAME>=VERSION in pyproject.toml, got {requirement!r}")
    name, version = found.groups()
    return f"{name}=={version}" + ".0" * (2 - version.count("."))


if sys.argv[1] == "build":
    requirements = PYPROJECT["build-system"]["requires"]
else:
    project = PYPROJECT["project"]
    extras = [project["optional-dependencies"][extra] for extra in sys.argv[2:]]
    requirements = sum(extras, project["dependencies"])
print(*map(oldest, requirements))
