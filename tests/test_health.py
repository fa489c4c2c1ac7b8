"""Health and silence of members, counted from looks at given times."""

import pytest

from rafthttp import ServerAddress, ServerHealth, ServerID, Suffrage
from rafthttp.health import HealthCounter, Sight

LEADER, OTHER, AWAY = ServerID("n1"), ServerID("n2"), ServerID("n3")


def counter() -> HealthCounter:
    return HealthCounter(last_contact_threshold=2.0, max_trailing_logs=10, interval=1.0)


def sight(
    server_id: ServerID,
    contact: float,
    *,
    heard: bool = True,
    lag: int = 0,
    suffrage: Suffrage = Suffrage.VOTER,
) -> Sight:
    return Sight(server_id, ServerAddress(f"{server_id}:1"), suffrage, contact, heard, lag)


def looks(
    counted: HealthCounter, times: list[float], *, away: float, quorum: bool = True
) -> ServerHealth:
    """Look at these times; `away` was last heard then; the rest is heard just before each look."""
    sights: list[Sight] = []
    for now in times:
        other = now - 0.1 if quorum else times[0] - 10
        sights = [sight(LEADER, now), sight(OTHER, other), sight(AWAY, away)]
        counted.look(now, sights)
    (health,) = [s for s in counted.health(times[-1], sights) if s.id == AWAY]
    return health


def test_silence_adds_up_while_a_quorum_is_heard() -> None:
    health = looks(counter(), [100.0, 101.0, 102.0, 103.0], away=99.9)
    assert health.silent_for == pytest.approx(3.0)
    assert health.last_contact == pytest.approx(3.1)
    assert not health.healthy
    assert health.stable_for is None


def test_silence_does_not_count_without_a_quorum() -> None:
    """A leader that is cut off hears nobody: that says nothing about anybody."""
    counted = counter()
    assert looks(counted, [100.0, 101.0, 102.0], away=99.9, quorum=False).silent_for == 0
    assert looks(counted, [103.0, 104.0], away=99.9).silent_for == pytest.approx(2.0)


def test_a_pause_does_not_count_as_silence() -> None:
    """S73: after a pause of an hour the answers lie unread; the clock alone accuses nobody."""
    counted = counter()
    looks(counted, [100.0, 101.0], away=99.9)
    woken = looks(counted, [3700.0], away=99.9)
    assert woken.silent_for == pytest.approx(1.0)
    assert looks(counted, [3701.0], away=99.9).silent_for == pytest.approx(2.0)


def test_a_server_that_returns_is_cleared() -> None:
    counted = counter()
    assert looks(counted, [100.0, 101.0, 102.0, 103.0], away=99.9).silent_for > 2
    back = looks(counted, [104.0], away=103.9)
    assert back.silent_for == 0
    assert back.healthy
    assert looks(counted, [104.5], away=103.9).stable_for == pytest.approx(0.5)


def test_a_sign_of_life_after_the_last_look_clears_too() -> None:
    counted = counter()
    looks(counted, [100.0, 101.0, 102.0, 103.0], away=99.9)
    (health,) = counted.health(103.2, [sight(AWAY, 103.1)])
    assert health.silent_for == 0


@pytest.mark.parametrize(
    ("seen", "healthy"),
    [
        (sight(AWAY, 99.0), True),
        (sight(AWAY, 98.0), True),
        (sight(AWAY, 97.9), False),
        (sight(AWAY, 99.0, lag=10), True),
        (sight(AWAY, 99.0, lag=11), False),
        (sight(AWAY, 99.0, heard=False), False),  # this leader has only just begun
    ],
)
def test_who_is_healthy(seen: Sight, healthy: bool) -> None:
    counted = counter()
    counted.look(100.0, [seen])
    (health,) = counted.health(100.0, [seen])
    assert health.healthy is healthy
    assert (health.stable_for is not None) is healthy
    assert (health.last_contact is None) is not seen.heard


def test_a_spell_of_bad_health_begins_the_count_anew() -> None:
    counted = counter()
    for now, lag in ((100.0, 0), (105.0, 0), (106.0, 11), (107.0, 0), (109.0, 0)):
        counted.look(now, [sight(AWAY, now, lag=lag)])
    (health,) = counted.health(110.0, [sight(AWAY, 110.0)])
    assert health.stable_for == pytest.approx(3.0)


def test_one_that_went_and_came_back_is_counted_from_its_return() -> None:
    counted = counter()
    looks(counted, [100.0, 101.0, 102.0], away=99.9)
    counted.look(103.0, [sight(LEADER, 103.0)])
    assert looks(counted, [104.0], away=99.9).silent_for <= 1.0
