from isthmus.engine.load_progress import LoadProgress


def test_a_line_every_few_seconds() -> None:
    now, lines = [0.0], []
    progress = LoadProgress(10 * 10**9, clock=lambda: now[0], show=lines.append)
    for second in (1.0, 2.0, 4.0, 5.0, 8.0):
        now[0] = second
        progress(2 * 10**9)
    assert lines == [
        "loading weights ████████████         60% of 10.0 GB, 1.5 GB/s",
        "loading weights ████████████████████ 100% of 10.0 GB, 1.2 GB/s",
    ]
