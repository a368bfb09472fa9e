"""The simulated short-video world: its truth, its causes one by one, its logs as a stream, and its problem."""

import tracemalloc

import numpy as np
import pytest
import torch

from mtl.problems import problem
from mtl.problems.shortvideo import CANDIDATES, CHUNK, SLOTS, World

USERS = np.arange(400)


@pytest.fixture(scope="module")
def world():
    return World(0, 1_500, 600)


def served(world, ranker=None, days=3, seed=0):
    shown = [world.serve(ranker or world.weak(np.random.default_rng(seed)), USERS, day, seed) for day in range(days)]
    return [np.concatenate(parts) for parts in zip(*shown, strict=True)]


def test_the_truth_is_the_mean_of_what_happens(world):
    _, video, _, click, watch, expected = served(world, days=30)
    share = np.minimum(watch / world.duration[video], 1)
    for seen, said in zip((click, share, watch), expected.T, strict=True):
        error = (seen - said).std() / np.sqrt(len(seen))
        assert abs((seen - said).mean()) < 4 * error, "the truth is off by more than chance"
    high = expected[:, 2] > np.quantile(expected[:, 2], 0.9)
    assert abs((watch - expected[:, 2])[high].mean()) < 4 * watch[high].std() / np.sqrt(high.sum())


def test_each_cause_does_what_it_is_named_for(world):
    user, videos = np.zeros(600, int), np.arange(600)
    click, scale, _, watch = world.expect(user, videos)
    for name, column, sign in (("bait", 0, 1), ("bait", 1, -1), ("quality", 0, 1), ("quality", 1, 1)):
        more = World(0, 1_500, 600)
        setattr(more, name, getattr(more, name) + 0.5)
        assert (sign * (more.expect(user, videos)[column] - (click, scale)[column]) > 0).all(), name
    assert (world.expect(user, videos, 10)[0] < click).all(), "a lower place has fewer clicks"
    assert (world.expect(user, videos, 0, 0.5)[3] > watch).all(), "a good day has more watching"
    nearest = np.square(world.points[0][:, None] - world.place[None]).sum(-1).min(0)
    flat = World(0, 1_500, 600)
    flat.quality[:] = flat.bait[:] = 0
    order = np.argsort(nearest)
    assert (np.diff(flat.expect(user, videos)[0][order]) <= 0).all(), "any one of several interests is enough"


def test_a_session_ends_and_boredom_ends_it(world):
    user, _, place, _, watch, _ = served(world, days=10)
    start = place == 0
    assert start.sum() > 100 and place.max() < SLOTS < CANDIDATES
    assert ((np.diff(place) == 1) | (np.diff(place) <= 0)).all() and (np.diff(user)[np.diff(place) == 1] == 0).all()
    goes_on = np.append(place[1:] == place[:-1] + 1, False) & (place < SLOTS - 1)
    inner = place < SLOTS - 1
    assert goes_on[inner & (watch >= 10)].mean() > 0.9 > 0.8 > goes_on[inner & (watch == 0)].mean()


def test_a_better_ranker_is_watched_more_and_a_shuffled_one_is_not(world):
    def noisy(level):
        draw = np.random.default_rng(1)
        return lambda user, video, day: (
            np.log(world.expect(user[:, None], video)[3]) + level * draw.normal(size=video.shape)
        )

    total = [served(world, ranker, days=14)[4].sum() for ranker in (noisy(8), noisy(2), noisy(0.5), world.oracle())]
    assert total == sorted(total) and total[-1] > 1.5 * total[0]


def test_days_and_worlds_repeat_by_their_seeds_alone(world):
    one, again, other = served(world, seed=4), served(World(0, 1_500, 600), seed=4), served(world, seed=5)
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert not np.array_equal(one[1][:50], other[1][:50]) and not np.array_equal(World(1, 1_500, 600).bait, world.bait)


def test_watching_varies_between_users_as_in_the_real_log():
    world = World(0, 6_000)
    watched = np.zeros(world.users)
    for _, shown in world.log(range(14)):
        watched += np.bincount(shown.user, shown.watch, minlength=world.users)
    active = watched[watched > 0]
    assert 1.17 <= active.std() / active.mean() <= 1.25, (
        "KuaiRand, 14 days, users with a row: 1.17; with all users 1.25"
    )


def test_a_longer_log_needs_no_more_memory():
    world = World(0, 2 * CHUNK)

    def peak(days):
        tracemalloc.start()
        rows = sum(len(shown.user) for _, shown in world.log(range(days)))
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return rows, size

    (few, small), (many, large) = peak(1), peak(4)
    assert many > 3 * few and large < 1.3 * small


def test_the_problem_is_synthetic_and_says_so_and_knows_its_ceiling():
    data = problem("shortvideo", "smoke", world=1)
    assert data.sizes == {"train": 2_000, "validation": 500, "test": 1_000} and data.tabs == []
    assert data.synthetic and "(synthetic)" in data.describe() and "Scores of the truth" in data.describe()
    assert data.options == {"targets": "natural", "world": 1}
    blind = data.blind()
    assert all(data.best[key] > blind[key] + 0.02 for key in data.best)
    assert not any("tab" in metric.name for metric in data.metrics)
    ids, numbers, y = data.data("train")
    assert (ids < torch.tensor(data.net_inputs[0])).all() and (ids >= 0).all() and numbers.isfinite().all()
    assert (y[y[:, 0] == 0, 1:3] == 0).all() and y[:, 1].max() == 1
    assert len(problem("shortvideo", "smoke").model("mmoe", 0)(ids, numbers)) == 3
    assert problem("shortvideo", "smoke").fingerprint != data.fingerprint
    with pytest.raises(ValueError, match="world must be a whole number, at least 0, found -1"):
        problem("shortvideo", world=-1)


def test_it_stands_in_for_the_real_log_and_says_so(nowhere):
    data = problem("kuairand", "smoke", fallback="shortvideo", targets="standardised")
    assert data.embedded_default and data.options["targets"] == "standardised"
    assert data.describe().startswith("EMBEDDED DEFAULT: kuairand was not found, simulated rows stand in for it.")
    with pytest.raises(ValueError, match="fallback of kuairand must be 'shortvideo' or None, found 'digits'"):
        problem("kuairand", fallback="digits")
