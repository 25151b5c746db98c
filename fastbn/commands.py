"""What `fastbn demo` and `fastbn bench` share: the extra that each needs, a folder to write to, figures."""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The packages that a command imports, from the extra of its name.
EXTRAS = {"demo": ("mlxtend", "matplotlib", "tqdm"), "bench": ("matplotlib",)}


class CannotRunError(RuntimeError):
    """The command cannot run here; the message says why and what to do."""


def check_extra(extra: str) -> None:
    """Raise CannotRunError where a package of the extra is missing. Imports none of them: that takes seconds."""
    missing = [name for name in EXTRAS[extra] if not _is_there(name)]
    if missing:
        raise CannotRunError(f'{", ".join(missing)} missing; install the extra: pip install "fastbn[{extra}]"')


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ImportError:  # of a finder that refuses it
        return False


def writeable_folder(path: str | Path) -> Path:
    """The folder `path`, created where it did not exist; CannotRunError where no file can be written there."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CannotRunError(f"cannot write to the folder {str(folder)!r}: {error.strerror or error}") from error
    return folder


def new_figure(width: float, height: float, title: str) -> Figure:
    """An empty figure; not from pyplot, which would choose a backend for the whole process."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    return figure
