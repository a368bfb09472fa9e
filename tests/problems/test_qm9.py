"""QM9 in both layouts, its faults by row and line, the generated stand-in; known molecules where QM9 is found."""

import numpy as np
import pytest
import torch

from mtl.errors import DataError
from mtl.problems import MissingDataError, problem
from mtl.problems.data.pins import entry
from mtl.problems.molecules import generate
from mtl.problems.qm9 import FAMILIES, HARTREE, NODES, PAIR, UNITS, Properties, features, split_rows
from mtl.problems.qm9_files import COLUMNS, COMPACT, ELEMENTS, FOLDER, PARTS, SHA256, TARGETS, Molecules, read
from tests.problems.damage import kept, spoil

SYMBOLS = {charge: symbol for symbol, charge in ELEMENTS.items()}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MTL_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MTL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MTL_ROOT", str(tmp_path / "project"))
    place = tmp_path / "data" / "qm9"
    place.mkdir(parents=True)
    return place


def arrays(n=60):
    made = generate(n)
    return {"n_atoms": made.n_atoms.astype(np.uint8), "Z": made.z, "pos": made.pos, "y": made.y}


def write_compact(folder, file):
    np.savez(folder / COMPACT[0], **file)


def write_parts(folder, file, change=None):
    """The same molecules as three CSV files; `change` replaces a cell: (row, column, text)."""
    ends = np.cumsum(file["n_atoms"].astype(int))
    lines = []
    for row, (end, n) in enumerate(zip(ends, file["n_atoms"].astype(int), strict=True)):
        own = slice(end - n, end)
        cells = dict.fromkeys(COLUMNS, '"x"') | {"Index": str(row + 1), "N_atoms": str(n)}
        cells["Elements"] = '"[' + ",".join(f"'{SYMBOLS[z]}'" for z in file["Z"][own]) + ']"'
        places = ",".join("[" + ",".join(map(repr, map(float, xyz))) + "]" for xyz in file["pos"][own])
        cells["XYZ_Ang"] = f'"[{places}]"'
        cells |= {column: repr(float(v)) for column, v in zip(TARGETS.values(), file["y"][row], strict=True)}
        if change and change[0] == row:
            cells[change[1]] = change[2]
        lines.append(",".join(cells.values()))
    for part, name in enumerate(PARTS):
        (folder / name).write_text("\n".join([",".join(COLUMNS), *lines[part * 20 : part * 20 + 20]]) + "\n")


def test_both_layouts_give_the_same_molecules(folder):
    file = arrays()
    write_parts(folder, file)
    from_csv = read()
    assert kept(folder.parent.parent / "cache") and from_csv.kind == "files other than the pinned ones"
    write_compact(folder, file)
    compact = read()
    for one, other in zip(from_csv[:4], compact[:4], strict=True):
        assert one.dtype == other.dtype and np.array_equal(one, other)
    assert np.array_equal(compact.pos, file["pos"]) and len(compact.n_atoms) == 60


def test_a_damaged_cache_is_made_again(folder):
    write_parts(folder, arrays())
    first = problem("qm9").fingerprint
    (cached,) = kept(folder.parent.parent / "cache")
    whole = cached.read_bytes()
    spoil(cached, "flipped")
    assert problem("qm9").fingerprint == first and cached.read_bytes() == whole


@pytest.mark.parametrize(
    ("column", "value", "match"),
    [
        ("Elements", '"[]"', r"Elements must be a list of at least one atom, each one of H, C, N, O, F, found '\[\]'"),
        ("Elements", "\"['C','Si']\"", r"Elements must be a list of .*, found \"\['C','Si'\]\""),
        ("XYZ_Ang", '"[[0,0]]"', "XYZ_Ang must be a list of three finite numbers for each atom, found"),
        ("XYZ_Ang", '"[[0,0,0]]"', "XYZ_Ang must be a list of three finite numbers for each atom, found"),
        ("XYZ_Ang", '"[[0,0,nan]]"', "XYZ_Ang must be a list of three finite numbers for each atom, found"),
        ("N_atoms", "40", "N_atoms must be the number of Elements, found 40"),
        ("HOMO_au", "nan", "HOMO_au must be a finite number, found nan"),
        ("HOMO_au", "-0.2.1", r"HOMO_au must be a finite number, found '-0\.2\.1'"),
        ("HOMO_au", "", "HOMO_au must be a finite number, found ''"),
    ],
)
def test_faults_of_csv_files_are_named_with_their_line(column, value, match, folder):
    write_parts(folder, arrays(), (23, column, value))
    with pytest.raises(DataError, match=rf"^qm9_part2\.csv line 5: {match}.*mtl data get qm9") as caught:
        problem("qm9")
    assert "\n" not in str(caught.value) and not list((folder.parent.parent).glob("cache/*"))


def test_numbers_as_the_package_writes_them_are_read(folder):
    for text, value in (("2.2E-6", 2.2e-6), ("0.", 0.0), ("-1.5e+2", -150.0)):
        write_parts(folder, arrays(), (23, "HOMO_au", text))
        assert read().y[23, 2] == value


def test_another_header_and_a_missing_part_are_refused(folder):
    write_parts(folder, arrays())
    text = (folder / PARTS[1]).read_text()
    (folder / PARTS[1]).write_text(text.replace("Dipole_debye", "Dipole"))
    with pytest.raises(DataError, match=r"qm9_part2\.csv line 1: must name the columns XYZ_file, .*found XYZ_file"):
        problem("qm9")
    (folder / PARTS[1]).unlink()
    with pytest.raises(DataError, match=r"\$MTL_DATA/qm9: must hold .*, found no qm9_part2\.csv; complete"):
        problem("qm9", fallback="molecules")


@pytest.mark.parametrize(
    ("name", "place", "value", "match"),
    [
        ("n_atoms", 7, 0, r" row 8: n_atoms must be at least 1, found 0"),
        ("Z", "first of row 8", 14, r" row 8: Z must be one of 1, 6, 7, 8, 9, found 14"),
        ("pos", "first of row 8", np.nan, r" row 8: pos must be three finite numbers, found \[nan nan nan\]"),
        ("y", (7, 3), np.inf, r" row 8: lumo must be a finite number, found inf"),
    ],
)
def test_faults_of_the_archive_are_named_with_their_row(name, place, value, match, folder):
    file = arrays()
    at = int(file["n_atoms"][:7].sum()) if place == "first of row 8" else place
    file[name][at] = value
    write_compact(folder, file)
    with pytest.raises(DataError, match=rf"^qm9_compact\.npz{match}; correct it or take"):
        problem("qm9")


def test_an_archive_whose_parts_do_not_fit_is_refused(folder):
    file = arrays()
    for change, match in (
        ({"Z": file["Z"][:-1]}, "n_atoms must count Z and pos, found"),
        ({"y": file["y"][:, :10]}, r"pos and y must be \(atoms, 3\) and \(60, 11\), found"),
        ({"n_atoms": file["n_atoms"].astype(float)}, "n_atoms must be of kind iu"),
    ):
        write_compact(folder, file | change)
        with pytest.raises(DataError, match=match):
            problem("qm9")
    write_compact(folder, file)
    (folder / COMPACT[0]).write_bytes((folder / COMPACT[0]).read_bytes()[:-200])
    with pytest.raises(DataError, match=r"qm9_compact\.npz: must be a whole \.npz archive, found a damaged one"):
        problem("qm9", fallback="molecules")


def test_missing_data_say_the_route_and_the_stand_in_says_what_it_is(nowhere):
    with pytest.raises(MissingDataError, match=r"found in none; run `mtl data get qm9`, .*fallback='molecules'"):
        problem("qm9")
    made = problem("qm9", fallback="molecules")
    assert made.synthetic and made.embedded_default and made.name == "molecules" and len(made.tasks) == 11
    assert made.describe().startswith("EMBEDDED DEFAULT: qm9 was not found, generated molecules stand in for it.")
    assert "(synthetic)" in made.describe() and made.fingerprint == problem("molecules").fingerprint
    assert made.sizes == {"train": 600, "validation": 200, "test": 400}


def test_the_manifest_fetches_the_files_that_are_read():
    item = entry("qm9")
    assert item.folder == FOLDER and [file.name for file in item.files] == list(PARTS)
    assert {file.name: file.sha256 for file in item.files} == {name: SHA256[name] for name in PARTS}


def test_splits_are_those_of_the_literature_disjoint_and_fixed():
    rows = split_rows(130_831, (None, 10_000, 10_000))
    assert {split: len(own) for split, own in rows.items()} == {"train": 110_831, "validation": 10_000, "test": 10_000}
    assert len(np.unique(np.concatenate(list(rows.values())))) == 130_831
    small = split_rows(130_831, (600, 200, 400))
    assert all(np.array_equal(small[split], rows[split][: len(small[split])]) for split in rows)


def turned(made, draw):
    """The same molecules moved, turned and with their atoms in another order."""
    turn = np.linalg.qr(draw.normal(size=(3, 3)))[0]
    ends = np.cumsum(made.n_atoms)
    order = np.concatenate([draw.permutation(np.arange(e - n, e)) for e, n in zip(ends, made.n_atoms, strict=True)])
    return made._replace(z=made.z[order], pos=(made.pos[order] @ turn + draw.normal(size=3)).astype(np.float32))


def test_features_do_not_see_place_direction_or_order_and_count_every_pair_once():
    made, draw = generate(30), np.random.default_rng(0)
    rows = np.arange(30)
    atoms, pairs = features(made, rows)
    other_atoms, other = features(turned(made, draw), rows)
    assert np.array_equal(atoms, other_atoms) and np.allclose(pairs, other, atol=1e-4)
    assert np.array_equal(atoms.sum(1), made.n_atoms)
    assert np.allclose(pairs.sum(1), made.n_atoms * (made.n_atoms - 1) / 2, atol=1e-4)
    back = features(made, rows[::-1])
    assert np.array_equal(back[1], pairs[::-1])


def test_a_distance_counts_at_the_two_nodes_around_it():
    r = float(np.sqrt(NODES[5] * NODES[6]))  # half way in ln r
    pair = Molecules(np.array([2]), np.array([8, 1], np.uint8), np.array([[0, 0, 0], [0, r, 0]], np.float32), None, "")
    atoms, pairs = features(pair, np.arange(1))
    table = pairs.reshape(15, len(NODES))
    assert atoms.tolist() == [[1, 0, 0, 1, 0]]
    assert table[PAIR[0, 3], 5:7] == pytest.approx([0.5, 0.5], abs=1e-5) and pairs.sum() == pytest.approx(1)


def test_the_fit_on_the_composition_is_of_the_training_rows_alone(folder):
    file = arrays(200)
    write_compact(folder, file)
    first = problem("qm9")
    rows = split_rows(200, (600, 200, 400))
    changed = file | {"y": file["y"].copy()}
    changed["y"][np.concatenate([rows["validation"], rows["test"]])] *= 3
    write_compact(folder, changed)
    other = problem("qm9")
    assert np.array_equal(first.fit, other.fit) and torch.equal(first.spread, other.spread)
    assert torch.equal(first.data("train")[1], other.data("train")[1]) and first.fingerprint != other.fingerprint
    z = first.data("train")[1].double()
    assert torch.allclose(z.mean(0), torch.zeros(11).double(), atol=1e-4)
    assert torch.allclose(z.std(0, correction=0), torch.ones(11).double(), atol=1e-4)
    composition = first.data("train")[0][:, :5].double()
    assert (composition.T @ z / len(z)).abs().max() < 1e-3, "what the fit leaves is not of the composition"


def test_errors_are_in_the_units_of_the_literature_and_losses_in_either():
    made, natural = problem("molecules"), problem("molecules", targets="natural")
    z = made.data("test")[1]
    guess = [column + 0.5 for column in z.unbind(1)]
    values = made.scores(guess, z)
    assert [values[f"{t}/mae"].item() for t in made.tasks] == pytest.approx((made.spread / 2).tolist(), rel=1e-4)
    assert values["mu/score"].item() == pytest.approx(np.log(2), rel=1e-4)
    assert {metric.key for metric in made.metrics} <= set(values) and made.metrics[6].unit == "meV"
    plain, own = (torch.stack(p.task_losses(guess, z)).double() for p in (made, natural))
    assert torch.allclose(own, plain * made.spread.square(), rtol=1e-5) and own.max() / own.min() > 1e5
    assert natural.options == {"targets": "natural"} and natural.fingerprint == made.fingerprint
    with pytest.raises(ValueError, match="targets must be one of standardised, natural, found 'raw'"):
        problem("molecules", targets="raw")


# As the package prints them, in the source's units, and what a problem's targets are, in the literature's.
WATER = (1.8511, 6.31, -0.2928, 0.0687, 19.0002, 0.021375, -76.404702, -76.401867, -76.400922, -76.422349, 6.002)
WATER_IN_MEV = (-7967.5, 1869.4, 581.6, -2079077.8, -2079000.7, -2078975.0, -2079558.0)
METHANE = (0.0, 13.21, -0.3877, 0.1171, 35.3641, 0.044749, -40.47893, -40.476062, -40.475117, -40.498597, 6.469)
METHANE_IN_MEV = (-10549.9, 3186.5, 1217.7, -1101487.8, -1101409.8, -1101384.0, -1102023.0)


def test_targets_of_two_known_molecules_are_in_the_units_of_the_literature():
    """Without the files: made-up geometry, printed targets, through the fit on the composition and back."""
    made = generate(60)
    molecules = made._replace(
        n_atoms=np.append(made.n_atoms, [3, 5]), z=np.append(made.z, [8, 1, 1, 6, 1, 1, 1, 1]).astype(np.uint8),
        pos=np.concatenate([made.pos, np.eye(8, 3, dtype=np.float32)]), y=np.concatenate([made.y, [WATER, METHANE]]),
    )  # fmt: skip
    rows = {"train": np.arange(40), "validation": np.arange(40, 60), "test": np.array([60, 61])}
    data = Properties("smoke", molecules, rows, targets="standardised", source="two known", fingerprint="two")
    composition = np.array([[1, 2, 0, 0, 1, 0], [1, 4, 1, 0, 0, 0]])  # of one, H, C, N, O, F
    found = data.data("test")[1].double().numpy() * data.spread.numpy() + composition @ data.fit
    units = ["D", "a0^3", "meV", "meV", "a0^2", *["meV"] * 5, "cal/(mol K)"]
    assert [metric.unit for metric in data.metrics] == units
    for values, printed, energies in zip(found, (WATER, METHANE), (WATER_IN_MEV, METHANE_IN_MEV), strict=True):
        meV = [value for value, unit in zip(values, units, strict=True) if unit == "meV"]
        assert meV == pytest.approx(energies, rel=1e-5, abs=0.1)
        assert values[[0, 1, 4, 10]] == pytest.approx(np.array(printed)[[0, 1, 4, 10]], abs=1e-3)


def test_a_family_is_one_target_four_times():
    assert list(FAMILIES) == list(UNITS) == list(TARGETS) and len(set(FAMILIES.values())) == 8
    assert [task for task, family in FAMILIES.items() if family == "energy"] == ["U0", "U", "H", "G"]


def test_generated_molecules_hold_together():
    made = generate(200)
    assert made.n_atoms.min() >= 4 and set(np.unique(made.z)) <= set(ELEMENTS.values())
    energies = made.y[:, 6:10]
    assert np.abs(energies - energies[:, :1]).max() < 0.03 < energies[:, 0].std(), "four temperatures of one energy"


# Ramakrishnan et al. 2014, B3LYP/6-31G(2df,p): dipole in debye, HOMO in hartree, <R^2> in bohr^2, U0 in hartree
KNOWN = {
    "methane": ({"C": 1, "H": 4}, 0.0, -0.3877, 35.3641, -40.47893),
    "ammonia": ({"N": 1, "H": 3}, 1.6256, -0.257, 26.1563, -56.525887),
    "water": ({"O": 1, "H": 2}, 1.8511, -0.2928, 19.0002, -76.404702),
    "acetylene": ({"C": 2, "H": 2}, 0.0, -0.2845, 59.5248, -77.308427),
    "hydrogen cyanide": ({"H": 1, "C": 1, "N": 1}, 2.8937, -0.3604, 48.7476, -93.411888),
    "formaldehyde": ({"H": 2, "C": 1, "O": 1}, 2.1089, -0.267, 59.9891, -114.483613),
}


@pytest.fixture(scope="module")
def whole():
    try:
        return read()
    except MissingDataError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", KNOWN)
def test_known_molecules_are_found_by_their_composition(name, whole):
    formula, mu, homo, r2, u0 = KNOWN[name]
    few = np.flatnonzero(whole.n_atoms <= 5)
    atoms, _ = features(whole, few)
    (row,) = few[(atoms == [formula.get(symbol, 0) for symbol in ELEMENTS]).all(1)]
    found = whole.y[row] * [factor for _, factor in UNITS.values()]
    assert found[[0, 2, 4, 6]] == pytest.approx([mu, homo * HARTREE, r2, u0 * HARTREE], rel=1e-6)


def test_water_has_its_bond_lengths_and_methane_its_zero_point_energy(whole):
    starts = np.cumsum(whole.n_atoms) - whole.n_atoms
    oxygen, *hydrogens = whole.pos[starts[2] : starts[2] + 3]
    assert [np.linalg.norm(h - oxygen) for h in hydrogens] == pytest.approx(
        [0.962, 0.962], abs=1e-3
    )  # experiment: .958
    assert whole.y[0, 5] * UNITS["zpve"][1] == pytest.approx(1218, abs=1)  # 27.7 kcal / mol is 1,201 meV


def test_real_qm9_where_it_is_found(whole):
    made = problem("qm9", "quick")
    assert len(whole.n_atoms) == 130_831 and made.sizes == {"train": 4_000, "validation": 1_000, "test": 2_000}
    assert made.fingerprint[:8] == "81933401" and "(real)" in made.describe() and not made.synthetic
    blind = made.blind()
    assert blind["U0/mae"] == pytest.approx(860, rel=0.1) and blind["r2/mae"] == pytest.approx(164, rel=0.1)
