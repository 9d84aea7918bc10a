"""What a patch of RecBole says of itself: the versions that need it, until when, and what breaks without it."""

import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata

RECBOLE = "1.2.1"  # the release in which the faults that are RecBole's alone were seen
NEXT_RECBOLE = "a RecBole release after 1.2.1"
NEXT_THOP = "a thop release after 0.1.1.post2209072238"


@dataclass(frozen=True)
class Patch:
    """A change of RecBole, or of a library as RecBole sees it, and the versions that need it.

    Attributes:
        apply: makes the change, for the process.
        cause: what breaks without it, in a line.
        package: the distribution whose version decides, or ``"python"``.
        needed_from: the first version of ``package`` with which something fails or warns.
        until: what ends the need.

    >>> aliases = Patch(lambda: None, "RecBole reads np.float", "numpy", "1.24", "a RecBole release after 1.2.1")
    >>> aliases.needed("1.23.5"), aliases.needed("1.24.0rc1"), aliases.needed("2.4.6")
    (False, True, True)
    """

    apply: Callable[[], None]
    cause: str
    package: str
    needed_from: str
    until: str

    @property
    def name(self) -> str:
        """The name of the function that makes the change."""
        return self.apply.__name__

    def needed(self, version: str | None = None) -> bool:
        """Whether this ``version`` of the package (default: the installed one) needs the change.

        A package of unknown version does: a patch changes nothing where its cause is absent.
        """
        try:
            version = version or installed_version(self.package)
        except metadata.PackageNotFoundError:
            return True
        return _release(version) >= _release(self.needed_from)


PATCHES: list[Patch] = []


def installed_version(package: str) -> str:
    """The version of an installed distribution, or of ``"python"``.

    Raises:
        importlib.metadata.PackageNotFoundError: if there is none of that name.
    """
    return platform.python_version() if package == "python" else metadata.version(package)


def _release(version: str) -> tuple[int, ...]:
    """The numbers of a version up to its suffix: 2, 6 and 0 of 2.6.0+cpu."""
    return tuple(map(int, re.findall(r"\d+", re.split(r"[^0-9.]", version)[0])))


def patch(
    cause: str, package: str = "recbole", needed_from: str = RECBOLE, until: str = NEXT_RECBOLE
) -> Callable[[Callable[[], None]], Patch]:
    """Enter the function below into :data:`PATCHES`; by default it mends a fault that is RecBole's own."""

    def entered(function: Callable[[], None]) -> Patch:
        PATCHES.append(Patch(function, cause, package, needed_from, until))
        return PATCHES[-1]

    return entered
