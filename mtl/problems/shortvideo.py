"""A simulated short-video app with a known truth: synthetic logs, and the world that serves rankers in the A/B test."""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtl.problems.base import SPLITS, check_scale
from mtl.problems.data import raw
from mtl.problems.kuairand import WatchLog

TOPICS, SPACE, INTERESTS, CANDIDATES, SLOTS = 30, 6, 3, 40, 20
ACTIVITY, PATIENCE, MOOD = 0.78, 0.5, 0.3  # spreads of logarithms: sessions a day, watching, that of one day
CHUNK = 4_000  # users simulated together: what memory grows with
DAYS = {"train": range(9), "validation": range(9, 10), "test": range(10, 14)}
ROWS = {"smoke": (2_000, 500, 1_000), "quick": (40_000, 10_000, 20_000), "study": (150_000, 17_000, 55_000)}
ROWS |= {"paper": ROWS["study"]}
PEOPLE = {"smoke": 250, "quick": 4_000, "study": 7_000, "paper": 7_000}
Array = NDArray[Any]
Ranker = Callable[[Array, Array, int], Array]  # users (S,), candidates (S, 40), day -> scores (S, 40)


class Shown(NamedTuple):
    """Impressions (n,) of one day, session by session from the top; `expected` (n, 3): the truth's means."""

    user: Array
    video: Array
    place: Array
    click: Array
    watch: Array  # seconds
    expected: Array  # P(click), E completion, E watch, given user, video, place and the user's mood of the day


class World:
    """Users, videos and how the ones meet the others; `seed` draws the world, nothing in it is learned or fitted.

    A user has three interests, points in a space of topics; affinity is the largest of three Gaussian kernels between
    these and the video. Hidden quality lengthens watching. Clickbait raises clicks and shortens watching. A click at
    place k (from 0) has P = sigmoid(-1 + 1.5 a + b/2 + q/5) / (1 + k/10); play time is min(Exp(s), twice the duration),
    log s = 2 + a + q/3 - b/3 + patience + mood of the day. After each place a user bored by it leaves with
    probability .35 (.05 if it was watched for 10 s or to the end). Sessions of a day are Poisson, by activity.
    None of it is in the family of the rankers: a kernel over hidden points, a cascade, a cap.
    """

    def __init__(self, seed: int = 0, users: int = 10_000, videos: int = 3_000) -> None:
        draw = np.random.default_rng([20230609, seed])
        self.seed, self.users, self.videos = seed, users, videos
        centres = draw.normal(size=(TOPICS, SPACE))
        self.liked = draw.integers(0, TOPICS, (users, INTERESTS))
        self.points = centres[self.liked] + 0.4 * draw.normal(size=(users, INTERESTS, SPACE))
        self.topic = draw.integers(0, TOPICS, videos)
        self.place = centres[self.topic] + 0.4 * draw.normal(size=(videos, SPACE))
        self.quality, self.bait = draw.normal(size=(2, videos))
        self.duration = np.exp(3.2 + 0.8 * draw.normal(size=videos)).clip(5, 300)
        self.author = draw.integers(0, max(videos // 4, 1), videos)
        self.activity = np.exp(ACTIVITY * draw.normal(size=users) - 0.5)
        self.patience = PATIENCE * draw.normal(size=users)
        known = self.liked[:, :2].copy()  # what an app knows of interests: two of three, a fifth of them wrong
        wrong = draw.random(known.shape) < 0.2
        known[wrong] = draw.integers(0, TOPICS, int(wrong.sum()))
        self.habit = np.digitize(self.activity * np.exp(0.5 * draw.normal(size=users)), [0.2, 0.5, 1, 2])
        self.segments = known

    def expect(self, user: Array, video: Array, place: Array | int = 0, mood: Array | float = 0.0) -> tuple[Array, ...]:
        """P(click), the scale s of play time after one, E completion and E watch, for arrays that broadcast."""
        near = np.square(self.points[user] - self.place[video][..., None, :]).sum(-1).min(-1)
        a = np.exp(-near / 4)
        q, b, duration = self.quality[video], self.bait[video], self.duration[video]
        click = 1 / (1 + np.exp(1 - 1.5 * a - b / 2 - q / 5)) / (1 + np.asarray(place) / 10)
        scale = np.exp(2 + a + q / 3 - b / 3 + self.patience[user] + mood)
        completion = click * scale / duration * -np.expm1(-duration / scale)
        watch = click * scale * -np.expm1(-2 * duration / scale)
        return click, scale, completion, watch

    def weak(self, draw: np.random.Generator) -> Ranker:
        """The logging policy: popularity, by clicks rather than by watching, under much noise."""
        return lambda user, video, day: (
            0.5 * self.bait[video] + 0.2 * self.quality[video] + draw.normal(size=video.shape)
        )

    def oracle(self) -> Ranker:
        """By the watch time that the truth expects: no ranker knows it, and only foresight of boredom could beat it."""
        return lambda user, video, day: self.expect(user[:, None], video)[3]

    def serve(self, ranker: Ranker, users: Array, day: int, seed: int) -> Shown:
        """One day of these users under a ranker: the best SLOTS of 40 drawn candidates, in order, until they leave."""
        draw = np.random.default_rng([self.seed, day, seed, int(users[0]) if len(users) else 0])
        mood = MOOD * draw.normal(size=len(users))
        of = np.repeat(np.arange(len(users)), draw.poisson(self.activity[users] * np.exp(mood)))
        user, mood = users[of], mood[of]
        pool = draw.integers(0, self.videos, (len(of), CANDIDATES))
        best = np.argsort(-ranker(user, pool, day), axis=1, kind="stable")[:, :SLOTS]
        video, place = np.take_along_axis(pool, best, 1), np.arange(SLOTS)
        click, scale, completion, watch = self.expect(user[:, None], video, place, mood[:, None])
        clicked = draw.random(video.shape) < click
        limit = 2 * self.duration[video]
        played = clicked * np.minimum(scale * draw.exponential(size=video.shape), limit)
        bored = (played < 10) & (played < limit / 2)
        leaves = draw.random(video.shape) < np.where(bored, 0.35, 0.05)
        there: Array = np.cumsum(leaves, 1) - leaves == 0
        rows = np.broadcast_to(user[:, None], video.shape)[there]
        expected = np.stack([click[there], completion[there], watch[there]], 1)
        places = np.broadcast_to(place, video.shape)[there]
        return Shown(rows, video[there], places, clicked[there], played[there], expected)

    def log(self, days: range, seed: int = 0) -> Iterator[tuple[int, Shown]]:
        """Days and impressions under the logging policy, `CHUNK` users at a time: a longer log needs no more memory."""
        for day in days:
            for start in range(0, self.users, CHUNK):
                users = np.arange(start, min(start + CHUNK, self.users))
                policy = self.weak(np.random.default_rng([self.seed, day, seed, start, 1]))
                yield day, self.serve(policy, users, day, seed)

    def inputs(self, user: Array, video: Array, day: Array | int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """What a ranker may know of pairs (n,): ids (n, 8), one number (n, 1); no place, quality, clickbait or mood."""
        weekday = np.broadcast_to(np.asarray(day) % 7, user.shape)
        columns = [
            user,
            video,
            self.author[video],
            self.topic[video],
            *self.segments[user].T,
            self.habit[user],
            weekday,
        ]
        numbers = (np.log(self.duration[video])[:, None] - 3.2) / 0.8
        return np.stack(columns, 1).astype(np.int32), numbers.astype(np.float32)

    @property
    def vocabulary(self) -> list[int]:
        """Values of each id."""
        return [self.users, self.videos, max(self.videos // 4, 1), TOPICS, TOPICS, TOPICS, 5, 7]

    def targets(self, shown: Shown) -> NDArray[np.float32]:
        """Click, completion, watch, and -1: there are no tabs."""
        share = np.minimum(shown.watch / self.duration[shown.video], 1)
        return np.stack([shown.click, share, shown.watch, np.full(len(share), -1)], 1).astype(np.float32)


class ShortVideo(WatchLog):
    """Synthetic: the tasks of KuaiRand on logs of a simulated world, with the scores that its truth reaches (`best`).

    Split by day: nine days of training, one of validation, four of test; `users` in the world (by default the scale's
    own number), of whose rows a fixed sample is taken. `stands_in_for` makes this the embedded
    default for the data set that was asked for and not found.
    """

    name: ClassVar[str] = "shortvideo"
    synthetic = True
    stands_in = "simulated rows stand in for it"

    def __init__(
        self, scale: str = "smoke", *, targets: str = "natural", world: int = 0, users: int | None = None,
        stands_in_for: str | None = None,
    ) -> None:  # fmt: skip
        check_scale(scale, ROWS)
        for name, value, least in (("world", world, 0), ("users", PEOPLE[scale] if users is None else users, 1)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number, at least {least}, found {value!r}")
        self.world = made = World(world, PEOPLE[scale] if users is None else users)
        splits, expected = {}, {}
        for split, count in zip(SPLITS, ROWS[scale], strict=True):
            blocks = [
                (*made.inputs(s.user, s.video, day), made.targets(s), s.expected) for day, s in made.log(DAYS[split])
            ]
            columns = [np.concatenate(parts) for parts in zip(*blocks, strict=True)]
            kept = np.sort(raw.permutation(len(columns[0]), 3)[:count])
            ids, numbers, labels, expected[split] = [torch.from_numpy(column[kept]) for column in columns]
            splits[split] = (ids, numbers, labels)
        super().__init__(
            scale, splits, made.vocabulary, targets=targets, source=f"simulated short-video log, world {world}",
            # of the recipe and the clicks, not of all bytes: exp and log may differ in the last digit between machines
            fingerprint=raw.fingerprint(
                [part.numpy() for ids, _, y in splits.values() for part in (ids, y[:, 0])], "shortvideo-v1"
            ),
            stands_in_for=stands_in_for,
        )  # fmt: skip
        self.options |= {"world": world} | ({"users": users} if users is not None else {})
        click, *numbers_ = expected["test"].unbind(1)
        pairs = zip(numbers_, self.mean, self.spread, strict=True)
        truth: list[Tensor] = [torch.logit(click, eps=1e-9), *((value - m) / s for value, m, s in pairs)]
        found = self.scores(truth, splits["test"][-1])
        self.best = {key: found[key].item() for key in ("click/auc", "completion/r2", "watch/r2")}

    def describe(self) -> str:
        best = ", ".join(f"{name} {value:.4f}" for name, value in self.best.items())
        return f"{super().describe()} Scores of the truth itself on the test rows: {best}."
