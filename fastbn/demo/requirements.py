"""What has to be there before the demo starts: the packages of the extra `demo`, and a folder to write to."""

import tempfile
from importlib.util import find_spec
from pathlib import Path

EXTRA = ("mlxtend", "matplotlib", "tqdm")


class CannotRunError(RuntimeError):
    """The demo cannot run here; the message says why and what to do."""


def check_extra() -> None:
    """Raise CannotRunError where a package of the extra is missing. Imports none of them: that takes seconds."""
    missing = [name for name in EXTRA if find_spec(name) is None]
    if missing:
        raise CannotRunError(f'{", ".join(missing)} missing; install the extra: pip install "fastbn[demo]"')


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
