from isthmus.launch.backoff import Backoff


def test_pauses_double_and_the_third_death_within_a_minute_is_the_last() -> None:
    backoff = Backoff()
    assert backoff.delay_after_death(100.0) == 0.5
    assert backoff.delay_after_death(110.0) == 1.0
    assert backoff.delay_after_death(159.9) is None


def test_old_deaths_are_forgotten() -> None:
    backoff = Backoff()
    assert [backoff.delay_after_death(now) for now in (0.0, 50.0, 100.0, 150.0)] == [0.5, 1.0, 1.0, 1.0]


def test_time_to_start_does_not_count() -> None:
    """A worker that dies after 50 s of loading, each time, will not do better."""
    backoff = Backoff()
    assert [backoff.delay_after_death(now, 50.0) for now in (50.0, 101.0, 152.0)] == [0.5, 1.0, None]
    backoff = Backoff()
    assert [backoff.delay_after_death(now, 50.0) for now in (120.0, 240.0, 360.0)] == [0.5, 0.5, 0.5]
