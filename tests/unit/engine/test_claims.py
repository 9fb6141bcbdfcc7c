"""Bodies in memory: what one end puts there the other finds, and nothing else is ever read, written or left."""

import errno
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rankmq.engine import claims
from rankmq.engine.claims import CLAIM_HEADER, CLAIMED_BYTES, CLAIMS_HEADER, ClaimFolder, Claims, new_token
from rankmq.engine.connection import Properties
from rankmq.engine.delivery import Delivery
from rankmq.schemas.errors import BlobMissing, InvalidInput, LimitExceeded

TOKEN = "0123456789abcdef" * 2
BODY = bytes(range(256)) * 40


@pytest.fixture
def folder(tmp_path):
    it = ClaimFolder.make(TOKEN, tmp_path)
    yield it
    it.close()


@pytest.fixture
def engine(tmp_path):
    it = Claims(1 << 20, tmp_path)
    yield it
    it.close()


def path(tmp_path: Path, token: str = TOKEN) -> Path:
    return tmp_path / f"rankmq-claims-{os.geteuid()}" / token


def delivered(body: bytes = b"", **headers: object) -> Delivery:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    properties = Properties(headers=given, message_id="m", reply_to="there")
    return Delivery(body, 7, "exchange", "key", False, properties)


def asked(claim: object, token: object = TOKEN) -> Delivery:
    return delivered(rankmq_claims=token, rankmq_claim=claim, mine="kept")


@given(body=st.binary(max_size=10_000), name=st.from_regex(r"q[0-9]{1,9}\.[0-9]", fullmatch=True) | st.just(""))
def test_what_is_put_there_is_found(body, name):
    with tempfile.TemporaryDirectory() as shm:
        there_and_gone(Path(shm), body, name)


def there_and_gone(tmp_path, body, name):
    one, other = ClaimFolder.make(TOKEN, tmp_path), ClaimFolder.open(TOKEN, tmp_path)
    claim = one.put(body, name)
    assert other.get(claim, len(body)) == body
    assert [it.name for it in path(tmp_path).iterdir()] == [claim.partition(":")[0]]
    one.drop(claim)
    assert not list(path(tmp_path).iterdir())
    other.close()
    one.remove()
    assert not list(tmp_path.iterdir())


def test_what_is_left_there_waits_for_who_comes_back(tmp_path):
    it = ClaimFolder.make(TOKEN, tmp_path)
    claim = it.put(BODY)
    it.leave()
    it = ClaimFolder.make(TOKEN, tmp_path)
    assert it.get(claim, 1 << 20) == BODY
    it.drop(claim)
    it.leave()
    assert not list(tmp_path.iterdir())


def test_those_who_come_and_those_who_go_are_not_in_each_others_way(tmp_path):
    def come_and_go(number):
        for _ in range(300):
            ClaimFolder.make(f"{number:032x}", tmp_path).leave()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(come_and_go, range(4)))
    assert not list(tmp_path.iterdir())


def test_a_name_is_written_anew(folder):
    first = folder.put(b"a" * 10, "q1.0")
    second = folder.put(b"b" * 20, "q1.0")
    assert folder.get(second, 100) == b"b" * 20
    with pytest.raises(BlobMissing, match="not what its claim says"):
        folder.get(first, 100)


def test_what_was_cut_off_or_altered_is_not_taken(folder, tmp_path):
    claim = folder.put(BODY)
    file = path(tmp_path) / claim.partition(":")[0]
    for content in (BODY[:-1], BODY + b"x", BODY[:-1] + b"y"):
        file.write_bytes(content)
        with pytest.raises(BlobMissing):
            folder.get(claim, 1 << 20)


@pytest.mark.parametrize(
    "claim",
    ["", "x", "x:1", "x:1:zzzzzzzz", "../secret:6:00000000", "/etc/passwd:6:00000000", ".hidden:6:00000000",
     "a/b:6:00000000", "x:-1:00000000", "x:1:0000000", "x:1:00000000\n", "x" * 90 + ":1:00000000",
     "x:" + "9" * 13 + ":00000000"],
)  # fmt: skip
def test_what_has_not_the_form_of_a_claim_is_refused(folder, claim):
    with pytest.raises(InvalidInput, match="no claim"):
        folder.get(claim, 1 << 20)


def test_a_body_that_is_too_large_is_not_read(folder):
    with pytest.raises(LimitExceeded, match="10240 bytes: 10239 are allowed"):
        folder.get(folder.put(BODY), len(BODY) - 1)


def test_a_link_is_not_followed(folder, tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    (path(tmp_path) / "x").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic links"):
        folder.get("x:6:00000000", 100)
    (path(tmp_path).parent / ("f" * 32)).symlink_to(tmp_path)
    with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
        ClaimFolder.open("f" * 32, tmp_path)


@pytest.mark.parametrize("token", ["", "x", "../" + "0" * 29, "0" * 31, "0" * 33, "A" * 32])
def test_what_is_no_token_is_not_opened(tmp_path, folder, token):
    with pytest.raises(FileNotFoundError):
        ClaimFolder.open(token, tmp_path)


def test_a_folder_that_others_can_look_into_is_not_used(tmp_path):
    path(tmp_path).mkdir(parents=True)
    path(tmp_path).parent.chmod(0o755)
    with pytest.raises(PermissionError, match="not ours alone"):
        ClaimFolder.make(TOKEN, tmp_path)
    with pytest.raises(PermissionError, match="not ours alone"):
        ClaimFolder.open(TOKEN, tmp_path)


def test_what_is_no_file_is_not_waited_for(folder, tmp_path):
    os.mkfifo(path(tmp_path) / "x")
    with pytest.raises(BlobMissing):
        folder.get("x:6:00000000", 100)


def test_a_directory_is_no_body_and_costs_no_descriptor(engine, folder, tmp_path):
    (path(tmp_path) / "x").mkdir()
    assert isinstance(engine.taken(asked("x:6:00000000")).fault, BlobMissing)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        assert isinstance(engine.taken(asked("x:6:00000000")).fault, BlobMissing)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("up", ["{}", "../{}", "../../{}", "../../../{}", "a\0b", "x" * 300, ".", "..", "", "\ud800"])
def test_nothing_but_a_body_is_deleted(folder, tmp_path, up):
    victim = tmp_path / "victim"
    victim.write_bytes(b"x")
    for name in (victim.name, str(victim)):
        folder.drop(up.format(name))
        folder.drop(up.format(name) + ":1:00000000")
    assert victim.exists()


def test_a_reply_that_reached_nobody_is_taken_back(engine, folder, tmp_path):
    headers, _ = engine.given({CLAIMS_HEADER: TOKEN}, BODY)
    assert len(list(path(tmp_path).iterdir())) == 1
    engine.take_back({CLAIMS_HEADER: TOKEN}, headers)
    assert not list(path(tmp_path).iterdir())
    engine.take_back({CLAIMS_HEADER: TOKEN}, headers)
    engine.take_back({}, None)
    engine.take_back({CLAIMS_HEADER: TOKEN}, {CLAIMS_HEADER: True})


def test_one_that_is_closed_opens_nothing(engine, folder):
    engine.close()
    before = len(os.listdir("/proc/self/fd"))
    assert engine.given({CLAIMS_HEADER: TOKEN}, BODY) == (None, BODY)
    assert len(os.listdir("/proc/self/fd")) == before


def test_who_comes_back_after_days_finds_its_own(tmp_path):
    it = ClaimFolder.make(TOKEN, tmp_path)
    claim = it.put(BODY)
    it.leave()
    os.utime(path(tmp_path), (0, time.time() - 2 * claims._SWEEP_SECONDS))
    it = ClaimFolder.make(TOKEN, tmp_path)
    assert it.get(claim, 1 << 20) == BODY
    it.close()


def test_room_is_left_for_others(folder, monkeypatch):
    there = os.statvfs_result((4096, 4096, 20_000, 6000, 6000, 0, 0, 0, 0, 255))  # 78 MiB, of which 23 are free
    monkeypatch.setattr(os, "fstatvfs", lambda _: there)
    folder.put(b"x" * (3 << 20))
    with pytest.raises(OSError, match="No space"):
        folder.put(b"x" * (4 << 20))


def test_nothing_is_left_of_what_could_not_be_written(folder, tmp_path, monkeypatch):
    def full(file: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        folder.put(BODY, "q1.0")
    assert not list(path(tmp_path).iterdir())


def test_the_sweep_takes_old_folders_of_those_who_are_gone(tmp_path):
    day = claims._SWEEP_SECONDS
    tokens = {name: new_token() for name in ("gone", "fresh", "held")}
    held = ClaimFolder.make(tokens["held"], tmp_path)
    for name in ("gone", "fresh"):
        it = ClaimFolder.make(tokens[name], tmp_path)
        it.put(BODY)
        it.close()
    for name in ("gone", "held"):
        os.utime(path(tmp_path, tokens[name]), (0, time.time() - day - 60))
    ClaimFolder.make(TOKEN, tmp_path).close()
    assert {it.name for it in path(tmp_path).parent.iterdir()} == {TOKEN, tokens["fresh"], tokens["held"]}
    held.close()


# ----------------------------------------------------------------------------------------------------- the engine's end


def test_a_request_with_its_body_is_left_alone(engine):
    delivery = delivered(BODY, mine=1)
    assert engine.taken(delivery) is delivery


def test_a_request_gets_its_body_and_keeps_it(engine, folder):
    taken = engine.taken(asked(folder.put(BODY)))
    assert (taken.body, taken.fault, taken.tag) == (BODY, None, 7)
    assert taken.headers == {"rankmq-claims": TOKEN, "mine": "kept"}
    assert taken.properties.message_id == "m"


@pytest.mark.parametrize(
    ("claim", "token", "error"),
    [
        ("x:1:00000000", TOKEN, BlobMissing),
        ("x:1:00000000", "f" * 32, BlobMissing),
        ("x:1:00000000", "../..", BlobMissing),
        ("x:1:00000000", None, InvalidInput),
        ("x:1:00000000", True, InvalidInput),
        (True, TOKEN, InvalidInput),
        (b"x:1:00000000", TOKEN, InvalidInput),
        ("../x:1:00000000", TOKEN, InvalidInput),
        ("x:99999999:00000000", TOKEN, LimitExceeded),
    ],
)
def test_a_request_whose_body_cannot_be_had_says_why(engine, folder, claim, token, error):
    delivery = asked(claim, token)
    taken = engine.taken(delivery)
    assert type(taken.fault) is error
    assert (taken.body, taken.headers) == (b"", delivery.headers)


def test_a_reply_goes_where_it_was_asked_to(engine, folder):
    headers, body = engine.given({CLAIMS_HEADER: TOKEN}, BODY)
    assert body == b""
    assert headers[CLAIMS_HEADER] is True
    assert folder.get(headers[CLAIM_HEADER], 1 << 20) == BODY
    small = b"x" * (CLAIMED_BYTES - 1)
    assert engine.given({CLAIMS_HEADER: TOKEN}, small) == ({CLAIMS_HEADER: True}, small)


@pytest.mark.parametrize("headers", [{}, {CLAIMS_HEADER: "f" * 32}, {CLAIMS_HEADER: "../x"}, {CLAIMS_HEADER: True}])
@pytest.mark.parametrize("body", [b"", BODY])
def test_other_replies_go_with_their_messages(engine, folder, headers, body):
    assert engine.given(headers, body) == (None, body)


def test_an_engine_without_shared_memory_has_none_of_it(folder, tmp_path):
    engine = Claims(1 << 20, None)
    assert isinstance(engine.taken(asked(folder.put(BODY))).fault, BlobMissing)
    assert engine.given({CLAIMS_HEADER: TOKEN}, BODY) == (None, BODY)


def test_a_folder_that_was_made_anew_is_found(engine, folder, tmp_path):
    assert engine.taken(asked(folder.put(BODY))).fault is None
    folder.remove()
    assert isinstance(engine.taken(asked("x:1:00000000")).fault, BlobMissing)
    assert engine.given({CLAIMS_HEADER: TOKEN}, BODY) == (None, BODY)
    again = ClaimFolder.make(TOKEN, tmp_path)
    assert engine.taken(asked(again.put(BODY))).body == BODY
    again.close()


def test_no_more_folders_are_open_than_some(engine, tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3 * claims._MOST_OPEN):
        it = ClaimFolder.make(new_token(), tmp_path)
        assert engine.taken(asked(it.put(BODY), it.token)).body == BODY
        it.close()
    assert len(os.listdir("/proc/self/fd")) <= before + claims._MOST_OPEN
    engine.close()
    assert len(os.listdir("/proc/self/fd")) == before
