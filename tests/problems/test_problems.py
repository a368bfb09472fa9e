"""The contract every problem keeps, the registry, the embedded default, and digits themselves."""

import math
import time

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from mtl.errors import DataError
from mtl.models import Branched
from mtl.problems import PROBLEMS, MissingDataError, problem
from mtl.problems.base import SPLITS, BinaryProblem
from mtl.problems.data import raw
from mtl.problems.digits import QUESTIONS


class Table(BinaryProblem):
    """200,000 rows of the size of Census."""

    name = "table"
    models = ()

    def __init__(self):
        draw = torch.Generator().manual_seed(0)
        splits = {}
        for split, n in (("train", 200_000), ("validation", 10), ("test", 10)):
            ids = torch.randint(50, (n, 32), generator=draw, dtype=torch.int32)
            splits[split] = (ids, torch.randn(n, 7, generator=draw), torch.rand(n, 2, generator=draw).round())
        super().__init__("smoke", ("a", "b"), splits, source="noise", fingerprint="")


def test_batches_give_every_row_once_in_an_order_that_the_seed_decides():
    digits = problem("digits")
    x, y = digits.data("train")
    got = [torch.cat(parts) for parts in zip(*digits.batches("train", 5, 64), strict=True)]
    again = [torch.cat(parts) for parts in zip(*digits.batches("train", 5, 64), strict=True)]
    other = [torch.cat(parts) for parts in zip(*digits.batches("train", 6, 64), strict=True)]
    assert torch.equal(got[0], again[0]) and not torch.equal(got[0], other[0]) and not torch.equal(got[0], x)
    pairs = lambda a, b: sorted(map(tuple, torch.cat([a, b], 1).tolist()))  # noqa: E731
    assert pairs(*got) == pairs(x, y), "an image must keep its labels, and none may be lost"
    sizes = [len(batch[0]) for batch in digits.batches("train", 0, 64)]
    assert sizes == [64] * 9 + [24]


def test_validation_and_test_come_in_order():
    digits = problem("digits")
    for split in ("validation", "test"):
        assert torch.equal(torch.cat([b[0] for b in digits.batches(split, 9, 32)]), digits.data(split)[0])


def test_batches_refuse_what_makes_no_sense():
    digits = problem("digits")
    with pytest.raises(ValueError, match="split must be one of train, validation, test, found 'dev'"):
        next(iter(digits.batches("dev")))
    with pytest.raises(ValueError, match="batch_size must be at least 1, found 0"):
        next(iter(digits.batches("train", 0, 0)))
    for given, said in (
        ({"rank": 2, "world": 2}, r"rank: must be in 0\.\.1, found 2"),
        ({"rank": -1}, "rank: must be a whole number of at least 0, found -1"),
        ({"world": 0}, "world: must be a whole number of at least 1, found 0"),
        ({"world": 25}, "world: must be at most the 24 rows of the smallest batch, found 25; use drop_last"),
        ({"world": 65, "drop_last": True}, "world: must be at most the 64 rows of the smallest batch, found 65"),
        ({"drop_last": 2}, "drop_last: must be True or False, found 2"),
    ):
        with pytest.raises(ValueError, match=said):
            next(iter(digits.batches("train", 0, 64, **given)))
    with pytest.raises(ValueError, match="drop_last: must be False for rows that are not trained on"):
        next(iter(digits.batches("test", 0, 64, drop_last=True)))


ROOMS = {"resolution": "32x48", "images": "7+3+2", "width": 4, "depth": 2}


@pytest.mark.parametrize(("name", "size", "options"), [("digits", 64, {}), ("rooms", 3, ROOMS)])
@pytest.mark.parametrize(("split", "drop_last"), [*((split, False) for split in SPLITS), ("train", True)])
def test_ranks_share_the_batches_of_one_process(name, size, options, split, drop_last):
    data = problem(name, **options)
    world = 1 if name == "rooms" and split == "train" and not drop_last else 2 if name == "rooms" else 5
    given = {"drop_last": True} if drop_last else {}
    alone = list(data.batches(split, 3, size, **given))
    ranks = [list(data.batches(split, 3, size, rank=r, world=world, **given)) for r in range(world)]
    if split == "train":
        assert {len(batches) for batches in ranks} == {len(alone)} == {data.sizes[split] // size + (not drop_last)}
        for k, whole in enumerate(alone):
            parts = [batches[k] for batches in ranks]
            assert max(len(part[0]) for part in parts) - min(len(part[0]) for part in parts) <= 1
            for t, together in zip(whole, zip(*parts, strict=True), strict=True):
                assert torch.equal(t, torch.cat(together))
    rows = sum(len(batch[0]) for batches in ranks for batch in batches)
    assert rows == (data.sizes[split] // size * size if drop_last else data.sizes[split])


def test_a_rank_without_a_row_of_the_last_batch_skips_it_where_nothing_is_trained():
    data = problem("rooms", **ROOMS)
    sizes = [[len(batch[0]) for batch in data.batches("validation", 0, 2, rank=r, world=2)] for r in (0, 1)]
    assert sorted(sizes) == [[1], [1, 1]]


@pytest.fixture
def one_thread():
    """One thread, since threads that wait for each other on a busy machine use time too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_million_rows_a_second_on_the_batch_path_of_one_core(one_thread):
    table = Table()
    best = math.inf
    for seed in range(5):
        start = time.process_time()
        assert sum(len(batch[0]) for batch in table.batches("train", seed, 2048)) == 200_000
        best = min(best, time.process_time() - start)
    assert 200_000 / best > 1e6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_batches_on_a_gpu():
    digits = problem("digits")
    for cpu, gpu in zip(digits.batches("train", 3, 64), digits.batches("train", 3, 64, "cuda"), strict=True):
        assert all(g.is_cuda and torch.equal(c, g.cpu()) for c, g in zip(cpu, gpu, strict=True))


def test_evaluate_is_sklearn_on_every_split_and_leaves_the_mode_alone():
    digits = problem("digits", "smoke", tasks=3)
    model = digits.model("mlp", 0)
    model.train()
    for split in SPLITS:
        values = digits.evaluate(model, split)
        x, y = digits.data(split)
        with torch.no_grad():
            logits = model(x)
        aucs = [roc_auc_score(y[:, t], logits[t]) for t in range(3)]
        assert [values[f"{task}/auc"] for task in digits.tasks] == pytest.approx(aucs, abs=1e-12)
        assert values["score"] == pytest.approx(np.mean(aucs))
        assert values["odd/accuracy"] == pytest.approx(((logits[0] > 0) == (y[:, 0] > 0)).double().mean().item())
        assert {metric.key for metric in digits.metrics} <= set(values)
    assert model.training


def test_a_model_gone_to_nan_shows_as_nan_in_its_task_only():
    digits = problem("digits", tasks=3)
    model = digits.model("mlp", 0)
    with torch.no_grad():
        model.head_parameters()[1][0].fill_(float("nan"))
    values = digits.evaluate(model, "validation")
    broken = {key for key, value in values.items() if math.isnan(value)}
    assert broken == {key for key in values if key.startswith("five-or-more/")} | {"score"}


def test_losses_and_features_hang_on_one_graph():
    digits = problem("digits")
    model = digits.model("mlp", 0)
    batch = next(iter(digits.batches("train", 0, 32)))
    losses, features = digits.losses_and_features(model, batch)
    assert [a.item() for a in losses] == pytest.approx([b.item() for b in digits.losses(model, batch)])
    assert all(torch.autograd.grad(loss, features, retain_graph=True)[0].abs().sum() > 0 for loss in losses)


def test_digits_are_whole_disjoint_and_labelled_right():
    whole = problem("digits", "quick", tasks=5)
    assert whole.sizes == {"train": 1293, "validation": 144, "test": 360}
    images = torch.cat([whole.data(split)[0] for split in SPLITS])
    assert len(images.unique(dim=0)) == 1797 and images.max() == 1
    from sklearn.datasets import load_digits

    order = raw.permutation(1797, 3)[:360]
    asked = [[digit in QUESTIONS[task] for task in whole.tasks] for digit in load_digits().target[order]]
    assert torch.equal(whole.data("test")[1], torch.tensor(asked).float())


def test_digits_can_be_learnt():
    digits = problem("digits", "quick")
    model = digits.model("mlp", 0)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for epoch in range(8):
        for batch in digits.batches("train", epoch, 64):
            optimizer.zero_grad()
            torch.stack(digits.losses(model, batch)).sum().backward()
            optimizer.step()
    assert digits.evaluate(model, "test")["score"] > 0.97


def test_fingerprint_tells_tasks_and_scales_apart_and_is_the_same_everywhere():
    prints = {(s, t): problem("digits", s, tasks=t).fingerprint for s in ("smoke", "quick") for t in (2, 3)}
    assert len(set(prints.values())) == 4
    assert prints["smoke", 2] == problem("digits", tasks=2).fingerprint
    assert raw.fingerprint([np.arange(4, dtype=">i4")], "a") == raw.fingerprint([np.arange(4, dtype="<i4")], "a")


def test_permutation_is_frozen():
    assert raw.permutation(8, 1).tolist() == FROZEN
    assert sorted(raw.permutation(1000, 7).tolist()) == list(range(1000))


FROZEN = [2, 4, 7, 5, 0, 6, 3, 1]


def test_unknown_names_are_listed_and_the_nearest_one_offered():
    with pytest.raises(ValueError, match=r"one of census, .*, digits, .*found 'cencus'; did you mean 'census'"):
        problem("cencus")
    with pytest.raises(ValueError, match="options of digits are tasks, found task"):
        problem("digits", task=3)
    with pytest.raises(ValueError, match="scale must be one of smoke, quick, paper, found 'big'"):
        problem("digits", "big")
    with pytest.raises(ValueError, match="tasks must be 2 to 5, found 6"):
        problem("digits", tasks=6)
    with pytest.raises(ValueError, match="model must be one of mlp, single-task, found 'mmoe'"):
        problem("digits").model("mmoe", 0)
    with pytest.raises(ValueError, match=r"fallback of census must be 'digits' or None, found 'noise'"):
        problem("census", fallback="noise")


@pytest.mark.parametrize(("name", "get"), [("census", "census"), ("multimnist", "mnist")])
def test_missing_data_say_where_they_were_sought_and_what_to_run(name, get, nowhere):
    with pytest.raises(DataError) as caught:
        problem(name)
    text = str(caught.value)
    assert isinstance(caught.value, MissingDataError) and "\n" not in text
    for part in ("data/raw/", "../shared/data/", "$MTL_DATA is not set", "found in none", f"`mtl data get {get}`"):
        assert part in text
    assert str(nowhere) not in text


def test_half_a_data_set_is_told_from_none(nowhere):
    folder = nowhere / "data" / "raw" / "census_income"
    folder.mkdir(parents=True)
    (folder / "census-income.data.gz").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"data/raw/census_income: must hold .*, found no census-income\.test\.gz; complete"
    ):
        problem("census")


@pytest.mark.parametrize("kind", ["nothing", "file"])
def test_a_data_variable_that_names_no_folder_is_not_passed_over(kind, nowhere, monkeypatch):
    """The data of another place were taken, and nothing said so."""
    named = nowhere / kind
    if kind == "file":
        named.write_text("")
    monkeypatch.setenv("MTL_DATA", str(named))
    for ask in (lambda: problem("census"), lambda: problem("census", fallback="digits"), lambda: problem("aliexpress")):
        with pytest.raises(DataError, match=r"^\$MTL_DATA: must name a folder, found '.*'; correct or unset it$"):
            ask()
    for empty in ("", str(nowhere)):  # it may hold other sets alone
        monkeypatch.setenv("MTL_DATA", empty)
        with pytest.raises(MissingDataError):
            problem("census")


def test_half_a_data_set_is_not_passed_over_for_a_whole_one(nowhere, monkeypatch):
    files, folder = ["a.csv", "b.csv"], nowhere / "named" / "toy"
    other = nowhere / "data" / "raw" / "toy"
    for made in (folder, other):
        made.mkdir(parents=True)
    for file in files:
        (other / file).write_bytes(b"")
    monkeypatch.setenv("MTL_DATA", str(nowhere / "named"))
    assert raw.find("toy", "toy", files).where == "data/raw/toy"
    (folder / "b.csv").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"^\$MTL_DATA/toy: must hold a\.csv and b\.csv, found no a\.csv; complete"
    ) as e:
        raw.find("toy", "toy", files)
    assert not isinstance(e.value, MissingDataError), "no fallback answers it"
    (folder / "a.csv").write_bytes(b"")
    assert raw.find("toy", "toy", files).where == "$MTL_DATA/toy"


def test_the_stand_in_is_taken_only_when_asked_for_and_says_so(nowhere):
    stand_in = problem("census", "smoke", fallback="digits", tasks=3)
    assert stand_in.embedded_default and stand_in.name == "digits" and len(stand_in.tasks) == 3
    assert stand_in.describe().startswith("EMBEDDED DEFAULT: census was not found, these digits stand in for it.")
    assert not problem("digits").embedded_default and not stand_in.synthetic


def test_damaged_data_never_fall_back(nowhere):
    folder = nowhere / "data" / "raw" / "census_income"
    folder.mkdir(parents=True)
    for name in ("census-income.data.gz", "census-income.test.gz"):
        (folder / name).write_bytes(b"no gzip")
    with pytest.raises(DataError, match=r"census-income\.data\.gz: must be a whole gzip file"):
        problem("census", fallback="digits")


def test_every_problem_is_registered_under_its_name():
    assert {name: kind.name for name, kind in PROBLEMS.items()} == {
        name: name.removesuffix("_scaled") for name in PROBLEMS
    }
    assert all(kind.models for kind in PROBLEMS.values())


def test_a_one_task_model_keeps_its_batch_dimension():
    model = Branched(nn.Linear(3, 4), [nn.Linear(4, 1)])
    assert model(torch.zeros(1, 3))[0].shape == (1,)


@pytest.mark.parametrize("given", [3, None, torch.ones(2), object])
def test_what_is_no_name_or_option_is_refused(given):
    with pytest.raises(ValueError, match=r"problem must be one of .*, found"):
        problem(given)
    with pytest.raises((ValueError, TypeError), match=r"tasks must be 2 to 5, found|options.tasks: a key is made of"):
        problem("digits", tasks=object if given is None or isinstance(given, int) else given)
    with pytest.raises(ValueError, match=r"scale must be one of .*, found"):
        problem("digits", given)


class Tiny(BinaryProblem):
    name = "tiny"
    models = ()

    def __init__(self, tasks=("a", "b"), **splits):
        rows = (torch.zeros(4, 3), torch.zeros(4, 2))
        every = {name: part for name, part in (dict.fromkeys(SPLITS, rows) | splits).items() if part is not None}
        super().__init__("smoke", tasks, every, source="zeros", fingerprint="")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tasks": ("a", "b", "a")}, "tasks: must have names of their own, found 'a' 2 times"),
        ({"test": None, "train": None}, "splits: must hold train, validation, test, found no train, test"),
        (
            {"train": (torch.zeros(4, 3), torch.zeros(3, 2))},
            r"splits\['train'\]: must have as many rows in each tensor, found 3 and 4",
        ),
        ({"test": ()}, r"splits\['test'\]: must have as many rows in each tensor, found no tensor"),
    ],
)
def test_a_problem_of_ones_own_is_told_what_is_wrong_with_it(given, said):
    """Two tasks of one name made a wrong score; the others ended in an error of another place."""
    assert Tiny().sizes == {"train": 4, "validation": 4, "test": 4}
    with pytest.raises(ValueError, match=f"^{said}$"):
        Tiny(**given)
