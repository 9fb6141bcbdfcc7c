"""The rank table: both forms, what they say, and everything that can be wrong with one."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rankmq.engine.rank_table import RankEntry, RankTable, parse_rank_table, read_rank_table
from rankmq.schemas.errors import ConfigurationError

EXAMPLE = Path(__file__).parents[3] / "examples" / "matmul" / "rank_table_8pcs.json"


def server_list_table() -> dict[str, Any]:
    """Two servers of two devices, ranks not in the order of the file."""
    return {
        "version": "1.0",
        "server_count": "2",
        "server_list": [
            {
                "server_id": "10.0.0.2",
                "device": [
                    {"device_id": "0", "device_ip": "192.168.2.8", "rank_id": "2"},
                    {"device_id": "1", "device_ip": "192.168.2.9", "rank_id": "3"},
                ],
                "host_nic_ip": "reserve",
            },
            {
                "server_id": "10.0.0.1",
                "device": [
                    {"device_id": "0", "device_ip": "192.168.1.8", "rank_id": "0"},
                    {"device_id": "1", "device_ip": "192.168.1.9", "rank_id": "1"},
                ],
                "host_nic_ip": "reserve",
            },
        ],
        "status": "completed",
    }


def group_list_table() -> dict[str, Any]:
    """The same group in the older form."""
    entries = parse_rank_table(server_list_table()).ranks
    return {
        "board_id": "0x0000",
        "chip_info": "910",
        "deploy_mode": "lab",
        "group_count": "1",
        "group_list": [
            {
                "device_num": "4",
                "server_num": "2",
                "group_name": "",
                "instance_count": "4",
                "instance_list": [
                    {
                        "devices": [{"device_id": str(it.device_id), "device_ip": it.device_ip}],
                        "rank_id": str(it.rank),
                        "server_id": it.host,
                    }
                    for it in entries
                ],
            }
        ],
        "para_plane_nic_location": "device",
        "para_plane_nic_name": ["eth0", "eth1", "eth2", "eth3"],
        "para_plane_nic_num": "4",
        "status": "completed",
    }


FORMS = {"server_list": server_list_table, "group_list": group_list_table}


@st.composite
def tables(draw: st.DrawFn) -> RankTable:
    names = st.text(min_size=1).filter(lambda name: name.isprintable() and name.strip())
    hosts = draw(st.lists(names, min_size=1, unique=True))
    seats = draw(st.lists(st.tuples(st.sampled_from(hosts), st.integers(0, 63)), min_size=1, max_size=24, unique=True))
    return RankTable(
        tuple(RankEntry(rank, host, device, f"192.168.0.{rank}") for rank, (host, device) in enumerate(seats))
    )


@given(tables())
def test_a_table_written_in_the_1_0_form_is_read_back_equal(table):
    assert parse_rank_table(json.loads(json.dumps(table.as_dict()))) == table


@given(tables())
def test_every_rank_is_on_one_host_and_hosts_come_in_the_order_of_their_lowest_rank(table):
    assert sorted(rank for host in table.hosts() for rank in table.ranks_of(host)) == list(range(table.size))
    lowest = [table.ranks_of(host)[0] for host in table.hosts()]
    assert lowest == sorted(lowest)
    assert table.ranks_of("no such host") == ()


@pytest.mark.parametrize("form", FORMS)
def test_both_forms_say_the_same(form):
    table = parse_rank_table(FORMS[form]())
    assert table.ranks == (
        RankEntry(0, "10.0.0.1", 0, "192.168.1.8"),
        RankEntry(1, "10.0.0.1", 1, "192.168.1.9"),
        RankEntry(2, "10.0.0.2", 0, "192.168.2.8"),
        RankEntry(3, "10.0.0.2", 1, "192.168.2.9"),
    )
    assert table.hosts() == ("10.0.0.1", "10.0.0.2")
    assert table.ranks_of("10.0.0.2") == (2, 3)


def numbers_for_texts(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: value[key] if key in ("version", "server_id") else numbers_for_texts(value[key]) for key in value}
    if isinstance(value, list):
        return [numbers_for_texts(item) for item in value]
    return int(value) if isinstance(value, str) and value.isdigit() else value


@pytest.mark.parametrize("form", FORMS)
def test_numbers_may_be_numbers(form):
    table = FORMS[form]()
    assert numbers_for_texts(table) != table
    assert parse_rank_table(numbers_for_texts(table)) == parse_rank_table(table)


def test_the_example_is_eight_ranks_on_this_host():
    table = read_rank_table(EXAMPLE)
    assert table.size == 8
    assert table.ranks_of("127.0.0.1") == tuple(range(8))
    assert [it.device_id for it in table.ranks] == list(range(8))


def test_a_local_table():
    table = RankTable.local(3)
    assert table.ranks_of("127.0.0.1") == (0, 1, 2)
    assert parse_rank_table(table.as_dict()) == table
    with pytest.raises(ConfigurationError):
        RankTable.local(0)


# ------------------------------------------------------------------------------------------------------ what is wrong


def at(table: Any, *path: Any) -> Any:
    for key in path:
        table = table[key]
    return table


def put(*path: Any, value: Any) -> Any:
    def change(table: Any) -> None:
        at(table, *path[:-1])[path[-1]] = value

    return change


def drop(*path: Any) -> Any:
    def change(table: Any) -> None:
        del at(table, *path[:-1])[path[-1]]

    return change


SERVER = ("server_list", 0)
DEVICE = (*SERVER, "device", 0)
INSTANCE = ("group_list", 0, "instance_list", 0)


@pytest.mark.parametrize(
    ("form", "change", "says"),
    [
        ("server_list", put("version", value="1.2"), "version is '1.2'"),
        ("server_list", drop("version"), "version is missing"),
        ("server_list", put("version", value=1.0), "version is 1.0"),
        ("server_list", put("status", value="initializing"), "initializing"),
        ("server_list", drop("server_list"), "neither"),
        ("server_list", put("server_list", value=[]), "server_list must be a list"),
        ("server_list", put("server_list", value={"0": {}}), "server_list must be a list"),
        ("server_list", put("server_list", 0, value="10.0.0.2"), "server_list[0] must be a JSON object"),
        ("server_list", put("server_count", value="3"), "server_count is 3, but there are 2"),
        ("server_list", put("server_count", value="two"), "server_count must be a whole number"),
        ("server_list", put(*SERVER, "server_id", value="10.0.0.1"), "10.0.0.1 was listed before"),
        ("server_list", put(*SERVER, "server_id", value=""), "server_id must be text"),
        ("server_list", drop(*SERVER, "server_id"), "server_id must be text, not missing"),
        ("server_list", put(*SERVER, "device", value=[]), "device must be a list"),
        ("server_list", drop(*DEVICE), "rank 2 is missing"),
        ("server_list", put(*SERVER, "server_id", value="10.0.0.2\n"), "server_id must be text"),
        ("server_list", put(*DEVICE, "rank_id", value="7"), "rank 2 is missing"),
        ("server_list", put(*DEVICE, "rank_id", value="0"), "rank 0 is there twice"),
        ("server_list", put(*DEVICE, "rank_id", value="-1"), "rank_id must be a whole number"),
        ("server_list", put(*DEVICE, "rank_id", value=True), "rank_id must be a whole number"),
        ("server_list", put(*DEVICE, "rank_id", value=2.0), "rank_id must be a whole number"),
        ("server_list", put(*DEVICE, "rank_id", value="٣"), "rank_id must be a whole number"),
        ("server_list", put(*DEVICE, "rank_id", value=10**9), "rank_id must be a whole number"),
        ("server_list", put(*DEVICE, "rank_id", value="9" * 5000), "rank_id must be a whole number"),
        ("server_list", drop(*DEVICE, "rank_id"), "rank_id must be a whole number from 0, not missing"),
        ("server_list", put(*DEVICE, "device_id", value="1"), "device 1 of 10.0.0.2 is given to rank 2 and 3"),
        ("server_list", drop(*DEVICE, "device_id"), "server_list[0].device[0]: device_id"),
        ("server_list", put(*DEVICE, "device_ip", value=7), "device_ip must be text"),
        ("group_list", put("group_count", value="2"), "group_count is 2, but there are 1"),
        ("group_list", put("group_list", value="0"), "group_list must be a list"),
        ("group_list", put("group_list", value=[]), "group_list must be a list"),
        ("group_list", put("group_list", 0, "device_num", value="8"), "device_num is 8, but there are 4"),
        ("group_list", put("group_list", 0, "instance_count", value="5"), "instance_count is 5, but there are 4"),
        ("group_list", put("group_list", 0, "server_num", value="1"), "server_num is 1, but there are 2"),
        ("group_list", drop("group_list", 0, "instance_list"), "instance_list must be a list"),
        ("group_list", put(*INSTANCE, "devices", value=[]), "devices must be a list"),
        ("group_list", put(*INSTANCE, "devices", value=[{}, {}]), "has 2 devices"),
        ("group_list", put(*INSTANCE, "rank_id", value="1"), "rank 1 is there twice"),
        ("group_list", put(*INSTANCE, "rank_id", value="tfdg5"), "rank_id must be a whole number"),
        ("group_list", put(*INSTANCE, "server_id", value=[]), "server_id must be text"),
        ("group_list", put(*INSTANCE, "devices", 0, "device_id", value="wd1gt2"), "device_id must be a whole number"),
        ("group_list", put("status", value="failed"), "status is 'failed'"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused_with_the_reason(form, change, says):
    table = FORMS[form]()
    change(table)
    with pytest.raises(ConfigurationError) as caught:
        parse_rank_table(table, file="ranks.json")
    message = caught.value.message
    assert message.startswith("ranks.json: ")
    assert says in message
    assert "\n" not in message


@pytest.mark.parametrize("table", [None, [], "x", 7, {}])
def test_what_is_no_table_at_all_is_refused(table):
    with pytest.raises(ConfigurationError):
        parse_rank_table(table)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [path, *(leaf for key, item in items for leaf in leaves(item, (*path, key)))]
    return [path]


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(form=st.sampled_from(sorted(FORMS)), junk=JUNK, data=st.data())
def test_whatever_stands_in_a_place_gives_a_valid_table_or_one_line(form, junk, data):
    table = FORMS[form]()
    path = data.draw(st.sampled_from(leaves(table)[1:]))
    put(*path, value=copy.deepcopy(junk))(table)
    try:
        read = parse_rank_table(table)
    except ConfigurationError as error:
        refusal = error.message
    else:
        refusal = ""
        assert [it.rank for it in read.ranks] == list(range(read.size))
        assert len({(it.host, it.device_id) for it in read.ranks}) == read.size
    assert "\n" not in refusal


# ---------------------------------------------------------------------------------------------------------- the file


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{\n "version": "1.0",\n oops }', ":3: the rank table is not JSON"),
        (b"", ":1: the rank table is not JSON"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b"[" * 100_000, "not JSON that can be read"),
        (b'{"rank_id": ' + b"9" * 5000 + b"}", "not JSON that can be read"),
        (b"[1, 2]", "must be a JSON object"),
    ],
)
def test_a_file_that_is_no_rank_table_is_named(tmp_path, content, says):
    path = tmp_path / "ranks.json"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        read_rank_table(path)
    assert str(path) in caught.value.message
    assert says in caught.value.message
    assert "\n" not in caught.value.message


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"none\.json: .*No such file"):
        read_rank_table(tmp_path / "none.json")


def test_a_folder_is_not_a_file(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_rank_table(tmp_path)
