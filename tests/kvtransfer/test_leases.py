from isthmus.kvtransfer.leases import Leases


def test_a_lease_ends_when_its_time_is_over() -> None:
    leases = Leases(30)
    leases.grant("a", 0)
    leases.grant("b", 10)
    assert leases.expire(29.9) == []
    assert leases.expire(30) == ["a"]
    assert leases.expire(30) == []
    assert ("a" in leases, "b" in leases) == (False, True)
    assert leases.expire(100) == ["b"]
    assert leases.num_expired == 2


def test_only_those_renewed_live_on() -> None:
    leases = Leases(30)
    for name in "abc":
        leases.grant(name, 0)
    leases.renew(["a", "c", "unknown"], 20)
    assert leases.expire(40) == ["b"]
    assert "unknown" not in leases
    leases.renew(["b"], 40)  # too late
    assert leases.expire(50) == ["a", "c"]


def test_what_has_ended_does_not_expire() -> None:
    leases = Leases(30)
    leases.grant("a", 0)
    leases.end("a")
    leases.end("unknown")
    assert leases.expire(100) == []
    assert leases.num_expired == 0
    leases.grant("a", 100)
    assert leases.expire(129) == []
