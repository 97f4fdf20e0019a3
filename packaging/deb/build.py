"""Builds the Debian package with nothing but dpkg-deb: `make deb`, or `python packaging/deb/build.py --output dist`.

The package carries Otto and everything that it imports in a virtual environment of its own, so that neither the
system's Python packages nor a user's can break the daemon, and no network is needed where it is installed:

    /usr/lib/otto/pyvenv.cfg, bin/python3        Debian's interpreter, with this as its prefix
    /usr/lib/otto/lib/python3.N/site-packages    Otto and its libraries, compiled
    /usr/bin/ottod, /usr/bin/ottoctl             launchers
    /lib/systemd/system, /usr/lib/systemd/user   units, from ottoctl/service_unit.py

The interpreter that builds decides the minor version that the package depends on. Two builds of the same tree with
the same versions (constraints.txt) are the same bytes: times come from SOURCE_DATE_EPOCH or the changelog, modes and
owners are set here, and compiled files refer to their sources by hash.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from email.parser import HeaderParser
from email.utils import parsedate_to_datetime
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PACKAGE = "otto-daemon"
PREFIX = Path("usr/lib/otto")
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
SITE = PREFIX / "lib" / PYTHON / "site-packages"
COMPLETIONS = {
    "bash": Path("usr/share/bash-completion/completions/ottoctl"),
    "zsh": Path("usr/share/zsh/vendor-completions/_ottoctl"),
    "fish": Path("usr/share/fish/vendor_completions.d/ottoctl.fish"),
}
INSTALLER_NOTES = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")
"""What pip writes about itself and about this machine."""
LAUNCHER = """\
#!/{prefix}/bin/python3 -I
from {module} import main

raise SystemExit(main())
"""


def main() -> int:
    """Builds the package and prints its path."""
    parser = argparse.ArgumentParser(description="Builds Otto's Debian package.")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="the directory for the package (dist)")
    output: Path = parser.parse_args().output
    version, epoch = newest_entry((HERE / "changelog").read_text())
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or epoch)
    os.environ |= {"SOURCE_DATE_EPOCH": str(epoch), "PYTHONHASHSEED": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    for name in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE"):
        os.environ.pop(name, None)
    check_version(version)
    with tempfile.TemporaryDirectory(prefix="otto-deb-") as work:
        stage = Path(work) / "stage"
        add_environment(stage, Path(work))
        add_programs(stage)
        add_documents(stage)
        add_control(stage, version)
        settle(stage, epoch)
        output.mkdir(parents=True, exist_ok=True)
        package = output / f"{PACKAGE}_{version}_{architecture()}.deb"
        run("dpkg-deb", "--root-owner-group", "-Zxz", "-z3", "--build", str(stage), str(package), quiet=True)
    print(package)
    return 0


def newest_entry(changelog: str) -> tuple[str, int]:
    """Version and time (seconds since 1970) of the changelog's newest entry. Source: deb-changelog(5)."""
    version = re.match(rf"{PACKAGE} \(([^)]+)\)", changelog)
    date = re.search(r"^ -- .*>  (.*)$", changelog, re.MULTILINE)
    if version is None or date is None:
        raise SystemExit(f"{HERE / 'changelog'}: no entry with a version and a date on top")
    return version[1], int(parsedate_to_datetime(date[1]).timestamp())


def check_version(version: str) -> None:
    """The changelog speaks of the version that is built."""
    found = re.search(r'__version__ = "([^"]+)"', (ROOT / "ottod" / "__init__.py").read_text())
    if found is None or found[1] != version.partition("-")[0]:
        built = found[1] if found else "unknown"
        raise SystemExit(f"{HERE / 'changelog'} is about {version}, ottod/__init__.py says {built}: add an entry")


def add_environment(stage: Path, work: Path) -> None:
    """Otto and its libraries, as wheels give them, compiled for this interpreter's minor version."""
    site = stage / SITE
    pip = (sys.executable, "-m", "pip", "--quiet")
    run(*pip, "wheel", "--no-deps", "--wheel-dir", str(work / "wheel"), str(ROOT))
    (wheel,) = (work / "wheel").glob("*.whl")
    constraints = str(HERE / "constraints.txt")
    run(*pip, "install", "--no-compile", "--only-binary=:all:", "--constraint", constraints, "--target", str(site),
        f"{wheel}[prices]")  # fmt: skip
    shutil.rmtree(site / "bin", ignore_errors=True)
    for note in INSTALLER_NOTES:
        for path in site.glob(f"*.dist-info/{note}"):
            path.unlink()
    run(sys.executable, "-m", "compileall", "-q", "-f", "--invalidation-mode", "unchecked-hash",
        "-s", str(stage), "-p", "/", str(site))  # fmt: skip
    programs = stage / PREFIX / "bin"
    programs.mkdir()
    (programs / "python3").symlink_to(f"../../../bin/{PYTHON}")
    (programs / "python").symlink_to("python3")
    (stage / PREFIX / "pyvenv.cfg").write_text(
        f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {sys.version_info.major}."
        f"{sys.version_info.minor}\n"
    )


def add_programs(stage: Path) -> None:
    """Launchers, completions and units."""
    for name, module in (("ottod", "ottod.__main__"), ("ottoctl", "ottoctl.main")):
        put(stage / "usr/bin" / name, LAUNCHER.format(prefix=PREFIX, module=module))
    # The staged library, run by this interpreter: the launchers' own is only there once the package is installed.
    environment = {**os.environ, "PYTHONPATH": str(stage / SITE), "PYTHONDONTWRITEBYTECODE": "1"}
    for shell, place in COMPLETIONS.items():
        argv = [sys.executable, "-P", "-m", "ottoctl", "completion", shell]
        text = subprocess.run(argv, env=environment, cwd="/", capture_output=True, text=True, check=True).stdout
        put(stage / place, text)
    for scope, place in (("system", "lib/systemd/system"), ("user", "usr/lib/systemd/user")):
        for unit in sorted((ROOT / "packaging/systemd" / scope).iterdir()):
            put(stage / place / unit.name, unit.read_text())


def add_documents(stage: Path) -> None:
    """Copyright, changelog, manual pages, and what Debian wants to know."""
    documents = stage / "usr/share/doc" / PACKAGE
    put(documents / "copyright", (HERE / "copyright").read_text() + licences(stage / SITE))
    put(documents / "README.Debian", (HERE / "README.Debian").read_text())
    put_compressed(documents / "changelog.gz", (HERE / "changelog").read_bytes())
    for page in sorted((HERE / "man").iterdir()):
        put_compressed(stage / f"usr/share/man/man{page.suffix[1:]}" / f"{page.name}.gz", page.read_bytes())
    put(stage / "usr/share/lintian/overrides" / PACKAGE, (HERE / "lintian-overrides").read_text())


def licences(site: Path) -> str:
    """A stanza for each library in the package, from what the library says of itself."""
    stanzas = []
    for metadata in sorted(site.glob("*.dist-info/METADATA")):
        fields = HeaderParser().parsestr(metadata.read_text(errors="replace"))
        if fields["Name"] == PACKAGE:
            continue
        licence = fields["License-Expression"] or " ".join((fields["License"] or "").split()[:8])
        classified = [c.rpartition(" :: ")[2] for c in fields.get_all("Classifier", []) if c.startswith("License ::")]
        shown = licence or ", ".join(classified) or "see its files"
        stanzas.append(f"\n{fields['Name']} {fields['Version']}: {shown}\n  /{SITE}/{metadata.parent.name}\n")
    return "".join(stanzas)


def add_control(stage: Path, version: str) -> None:
    """The package's description, its scripts and the checksums."""
    control = stage / "DEBIAN"
    size_kib = sum(max(1, -(-p.stat().st_size // 1024)) for p in files(stage))
    fields = {"package": PACKAGE, "version": version, "architecture": architecture(), "python": PYTHON}
    put(control / "control", (HERE / "control").read_text().format_map({**fields, "size": size_kib}))
    sums = [f"{hashlib.md5(p.read_bytes()).hexdigest()}  {p.relative_to(stage)}\n" for p in files(stage)]
    put(control / "md5sums", "".join(sums))
    for script in sorted((HERE / "scripts").iterdir()):
        put(control / script.name, script.read_text())


def files(stage: Path) -> list[Path]:
    """The regular files that will be installed, in a stable order."""
    found = (p for p in stage.rglob("*") if p.is_file() and not p.is_symlink())
    return sorted(p for p in found if p.relative_to(stage).parts[0] != "DEBIAN")


def settle(stage: Path, epoch: int) -> None:
    """Gives everything the mode that Debian wants and the same time."""
    for path in [stage, *stage.rglob("*")]:
        if not path.is_symlink():
            is_program = path.parent in (stage / "usr/bin", stage / "DEBIAN") and path.is_file() and is_script(path)
            path.chmod(0o755 if path.is_dir() or is_program else 0o644)
        os.utime(path, (epoch, epoch), follow_symlinks=False)


def is_script(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"#!"


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def put_compressed(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content, 9, mtime=0))


def architecture() -> str:
    return run("dpkg", "--print-architecture", quiet=True).strip()


def run(*argv: str, quiet: bool = False) -> str:
    """A command's output. A failure ends the build with the command's own words."""
    stderr = subprocess.PIPE if quiet else None
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=stderr, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(argv[:4])} … failed with status {done.returncode}\n{done.stderr or ''}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
