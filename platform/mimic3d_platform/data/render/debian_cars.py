"""Car models of Debian's package sweethome3d-furniture, with their authors and licences."""

from __future__ import annotations

import io
import logging
import lzma
import re
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from mimic3d_platform.data.render.meshes import Mesh, load_mesh
from mimic3d_platform.errors import UserError
from mimic3d_platform.settings import child_environment

log = logging.getLogger(__name__)

PACKAGE = "sweethome3d-furniture"
_LISTING = "PluginFurnitureCatalog.properties"
_OWN_MODELS = "give a folder of your own models with --meshes FOLDER"


@dataclass(frozen=True)
class Library:
    """One catalogue file of the package, and its models' licence (from the package's copyright file)."""

    file: str
    licence: str
    link: str


@dataclass(frozen=True)
class Car:
    """A car: its id in the catalogue, and the materials of its first and second paint."""

    identifier: str
    paints: tuple[str, ...]


KATOR_LEGAZ = Library("KatorLegaz.sh3f", "CC-BY-3.0-US", "https://creativecommons.org/licenses/by/3.0/us/")
SCOPIA = Library("Scopia.sh3f", "CC-BY-3.0", "https://creativecommons.org/licenses/by/3.0/")
BLEND_SWAP = Library("BlendSwap-CC-BY.sh3f", "CC-BY-3.0", "https://creativecommons.org/licenses/by/3.0/")

# The cars among the 28 entries of the category "Vehicles", chosen by eye; each is upright, its front toward
# +z. Left out: bicycles, scooters, a motorbike, a tricycle, a pram, a skateboard, lorries, buses and a fork
# lift.
CARS: dict[Library, tuple[Car, ...]] = {
    BLEND_SWAP: (Car("Blend Swap CC-BY#fordFocus", ("carPaint",)),),
    KATOR_LEGAZ: (
        Car("Kator Legaz#VW-new-beetle", ("PAINT_yellow",)),
        Car("Kator Legaz#concept-sedan-01v1", ("Car",)),
        Car("Kator Legaz#concept-sedan-01v2", ("Car",)),
        Car("Kator Legaz#concept-sedan-02", ("PAINT_lt_blue",)),
        Car("Kator Legaz#concept-sedan-02-sport", ("PAINT_lt_blue",)),
    ),
    SCOPIA: (
        Car("Scopia#chevrolet", ("firstcolor",)),
        Car("Scopia#peugeot-308", ("color-exterior",)),
        Car("Scopia#renault-scenic", ("color-beige-green",)),
        Car("Scopia#seat_leon", ("chapa_roja",)),
        Car("Scopia#smart-car", ("first-color", "second-color")),
        Car("Scopia#suv", ("firstcolor",)),
        Car("Scopia#van", ("firstcolor",)),
    ),
}


def load_cars(cache: Path) -> list[Mesh]:
    """The package's cars; the package is downloaded into the folder `cache` unless it is there.

    Raises:
        UserError: apt cannot download the package, or the package is broken or has no known car.
    """
    package = fetch_package(cache)
    folder = unpack_cars(package)
    meshes = []
    for library, cars in CARS.items():
        catalogue = parse_catalogue((folder / library.file / _LISTING).read_text(encoding="latin-1"))
        for car in cars:
            entry = catalogue.get(car.identifier)
            if entry is None:
                log.warning("%s has no model %s: skipped", package.name, car.identifier)
                continue
            try:
                mesh = load_mesh(
                    folder / library.file / entry["model"].lstrip("/"),
                    identifier=car.identifier,
                    name=entry["name"],
                    author=entry.get("creator", "unknown"),
                    licence=f"{library.licence} ({library.link})",
                    source=f"Debian {package.stem}, {library.file}",
                    paints=car.paints,
                )
            except ValueError as error:
                log.warning("skipped the model %s of %s: %s", car.identifier, package.name, error)
                continue
            meshes.append(mesh)
    if not meshes:
        raise UserError(f"{package} has no known car: delete it to fetch it again, or {_OWN_MODELS}")
    return meshes


def fetch_package(cache: Path) -> Path:
    """The package's .deb file in `cache`; downloaded by apt, which needs no root, unless it is there.

    Raises:
        UserError: apt is missing, or cannot download the package within 10 minutes.
    """
    cache.mkdir(parents=True, exist_ok=True)
    found = sorted(cache.glob(f"{PACKAGE}_*.deb"))
    if found:
        return found[-1]
    if shutil.which("apt-get") is None:
        raise UserError(f"the car models come from Debian's {PACKAGE} and apt-get is missing: {_OWN_MODELS}")
    # In a folder of its own, so that an incomplete download is never taken for the package, and two
    # processes do not meet.
    partial = Path(tempfile.mkdtemp(prefix=f"{PACKAGE}.partial-", dir=cache))
    try:
        problem = _apt_get(partial, "download", PACKAGE)
        if problem is not None:
            # A new machine has no package lists, and updating the system's needs root: use lists of our own.
            own_lists = _own_apt_state(partial / "apt")
            problem = _apt_get(partial, *own_lists, "update") or _apt_get(
                partial, *own_lists, "download", PACKAGE
            )
        files = list(partial.glob("*.deb"))
        if problem is not None or not files:
            raise UserError(f"apt-get could not download {PACKAGE} ({problem}): {_OWN_MODELS}")
        return files[0].replace(cache / files[0].name)
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"apt-get did not download {PACKAGE} in 10 minutes: try later, or {_OWN_MODELS}"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _apt_get(folder: Path, *arguments: str) -> str | None:
    """Runs apt-get in `folder`; None if it succeeds, else its first error."""
    run = subprocess.run(
        ["apt-get", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        env=child_environment(),
    )
    errors = [line for line in run.stderr.splitlines() if line.startswith("E:")]
    if run.returncode == 0:
        return None
    return errors[0] if errors else f"exit status {run.returncode}"


def _own_apt_state(folder: Path) -> list[str]:
    """Options that make apt keep its lists and cache below `folder`."""
    (folder / "lists" / "partial").mkdir(parents=True)
    (folder / "cache" / "archives" / "partial").mkdir(parents=True)
    return ["-o", f"Dir::State::lists={folder / 'lists'}", "-o", f"Dir::Cache={folder / 'cache'}"]


def unpack_cars(package: Path) -> Path:
    """Unpacks the cars' files into a folder beside the package, unless it is there; returns the folder.

    Raises:
        UserError: the package is broken, or the disk is full.
    """
    folder = package.with_suffix("")
    if folder.is_dir():
        return folder
    partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.partial-", dir=folder.parent))
    try:
        archives = _read_members(package, {library.file for library in CARS})
        for library, cars in CARS.items():
            with zipfile.ZipFile(io.BytesIO(archives[library.file])) as archive:
                catalogue = parse_catalogue(archive.read(_LISTING).decode("latin-1"))
                models = [catalogue[car.identifier]["model"] for car in cars if car.identifier in catalogue]
                wanted = tuple(str(Path(model).parent).lstrip("/") + "/" for model in models)
                names = [name for name in archive.namelist() if name.startswith(wanted)]
                archive.extractall(partial / library.file, [*names, _LISTING, "LICENSE.TXT"])
        try:
            return partial.replace(folder)
        except OSError:
            if folder.is_dir():  # Another process was quicker.
                return folder
            raise
    except (
        OSError,
        EOFError,
        ValueError,
        KeyError,
        lzma.LZMAError,
        tarfile.TarError,
        zipfile.BadZipFile,
    ) as error:
        if isinstance(error, OSError) and error.errno:
            raise UserError(
                f"cannot unpack {package}: {error.strerror}; correct that and run again"
            ) from error
        raise UserError(f"{package} is broken: delete it and run again, or {_OWN_MODELS}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def parse_catalogue(text: str) -> dict[str, dict[str, str]]:
    """The entries of a furniture catalogue, `key#number=value` lines, by model id."""
    entries: dict[str, dict[str, str]] = {}
    for key, number, value in re.findall(r"^(\w+)#(\d+)\s*=\s*(.*?)\s*$", text, re.MULTILINE):
        entries.setdefault(number, {})[key] = value
    return {entry["id"]: entry for entry in entries.values() if "id" in entry and "model" in entry}


def _read_members(package: Path, names: set[str]) -> dict[str, bytes]:
    """Files of a Debian package by base name: the package is an `ar` archive that holds a data.tar.*."""
    found: dict[str, bytes] = {}
    with package.open("rb") as file:
        if file.read(8) != b"!<arch>\n":
            raise tarfile.TarError("not a Debian package")
        while header := file.read(60):
            size = int(header[48:58])
            if not header.startswith(b"data.tar"):
                file.seek(size + size % 2, 1)
                continue
            with tarfile.open(fileobj=io.BytesIO(file.read(size)), mode="r:*") as archive:
                for member in archive:
                    content = archive.extractfile(member) if Path(member.name).name in names else None
                    if content is not None:
                        found[Path(member.name).name] = content.read()
                    if len(found) == len(names):
                        return found
    raise KeyError(", ".join(sorted(names - found.keys())))
