from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sampan.storage.tar import (
    CHAR,
    DIRECTORY,
    FILE,
    LINK,
    SYMLINK,
    Entry,
    Limits,
    TarError,
    number,
    pax_record,
    pax_records,
    pax_time,
    signed_checksum,
    timestamp,
)
from sampan.storage.tar_reader import TarReader
from sampan.storage.tar_writer import TarWriter
from tests.unit.storage.tarkit import (
    base256,
    directory,
    file,
    octal,
    pax,
    pax_raw,
    raw,
    stream,
)


def read_all(source: io.BytesIO, limits: Limits | None = None) -> list[tuple[Entry, bytes]]:
    reader = TarReader(source, limits)
    return [(entry, b"".join(bytes(piece) for piece in reader.chunks())) for entry in reader]


def only(source: io.BytesIO) -> Entry:
    [(entry, _)] = read_all(source)
    return entry


class TestDialects:
    def test_ustar_prefix_is_put_in_front_of_the_name(self) -> None:
        assert only(stream(raw(b"name", prefix=b"some/where"))).name == b"some/where/name"

    def test_gnu_header_keeps_its_times_where_posix_has_the_prefix(self) -> None:
        entry = only(stream(raw(b"name", magic=b"ustar  \0", prefix=b"12345670123")))
        assert entry.name == b"name"

    def test_star_header_has_a_shorter_prefix(self) -> None:
        entry = only(stream(raw(b"n", prefix=b"p" * 10, tail=b"tar\0")))
        assert entry.name == b"pppppppppp/n"

    def test_v7_directory_is_known_by_its_slash(self) -> None:
        assert only(stream(raw(b"d/", kind=b"\0", magic=b""))).kind == DIRECTORY

    def test_contiguous_file_is_a_file(self) -> None:
        assert only(stream(raw(b"f", kind=b"7"))).kind == FILE

    def test_gnu_long_name_and_link(self) -> None:
        long = b"d/" * 200 + b"f"
        entry = only(
            stream(
                raw(b"././@LongLink", kind=b"L", size=octal(len(long) + 1), data=long + b"\0"),
                raw(b"././@LongLink", kind=b"K", size=octal(len(long) + 1), data=long + b"\0"),
                raw(b"short", kind=b"2", linkname=b"short"),
            )
        )
        assert (entry.name, entry.linkname, entry.kind) == (long, long, SYMLINK)

    def test_pax_wins_over_gnu_and_header(self) -> None:
        entry = only(
            stream(
                raw(b"L", kind=b"L", size=octal(4), data=b"gnu\0"),
                pax([(b"path", b"pax"), (b"uid", b"70000000"), (b"mtime", b"-1.5")]),
                raw(b"plain"),
            )
        )
        assert (entry.name, entry.uid, entry.mtime_ns) == (b"pax", 70000000, -1_500_000_000)

    def test_pax_size_replaces_the_header_size(self) -> None:
        [(entry, data)] = read_all(
            stream(pax([(b"size", b"5")]), raw(b"f", size=octal(0), data=b"hello"))
        )
        assert (entry.size, data) == (5, b"hello")

    def test_names_that_are_not_utf8_are_bytes(self) -> None:
        name = b"caf\xe9/\xff\xfe"
        assert (
            only(stream(pax([(b"hdrcharset", b"BINARY"), (b"path", name)]), raw(b"x"))).name == name
        )

    def test_xattrs_keep_every_byte(self) -> None:
        entry = only(stream(pax([(b"SCHILY.xattr.user.k=v", b""), (b"SCHILY.xattr.security.capability", b"\1\0\n=\xff")]), raw(b"x")))  # fmt: skip
        assert entry.xattrs is not None
        assert entry.xattrs[b"security.capability"] == b"\1\0\n=\xff"

    def test_global_header_changes_nothing(self) -> None:
        assert (
            only(stream(pax([(b"path", b"evil"), (b"comment", b"x")], b"g"), raw(b"f"))).name
            == b"f"
        )

    def test_links_and_directories_have_no_data_whatever_their_size_says(self) -> None:
        entries = read_all(
            stream(
                raw(b"l", kind=b"1", linkname=b"t", size=octal(1 << 30)),
                raw(b"d", kind=b"5", size=octal(512)),
                raw(b"f", size=octal(2), data=b"ok"),
            )
        )
        assert [(entry.name, data) for entry, data in entries] == [
            (b"l", b""),
            (b"d", b""),
            (b"f", b"ok"),
        ]

    def test_devices_carry_their_numbers(self) -> None:
        entry = Entry(b"null", CHAR, major=1, minor=3)
        written: list[bytes] = []
        writer = TarWriter(written.append)
        writer.add(entry)
        writer.close()
        again = only(io.BytesIO(b"".join(written)))
        assert (again.kind, again.major, again.minor) == (CHAR, 1, 3)

    def test_archive_may_end_without_zero_blocks(self) -> None:
        assert len(read_all(stream(file(b"a", b"1"), end=False))) == 1

    def test_signed_checksums_of_old_tars_are_accepted(self) -> None:
        block = bytearray(raw(b"caf\xe9"))
        block[148:156] = b"%06o\0 " % signed_checksum(bytes(block))
        assert only(stream(bytes(block))).name == b"caf\xe9"


class TestSparse:
    def check(
        self, source: io.BytesIO, size: int, pieces: list[tuple[int, int]], data: bytes
    ) -> None:
        [(entry, found)] = read_all(source)
        assert (entry.size, entry.sparse, found) == (size, pieces, data)

    def test_old_gnu_form(self) -> None:
        block = bytearray(raw(b"s", kind=b"S", size=octal(1024), magic=b"ustar  \0"))
        for index, (offset, length) in enumerate([(0, 512), (8192, 512), (16384, 0)]):
            block[386 + 24 * index : 410 + 24 * index] = octal(offset) + octal(length)
        block[483:495] = octal(16384)
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        self.check(stream(bytes(block), b"a" * 1024), 16384, [(0, 512), (8192, 512)], b"a" * 1024)

    def test_pax_form_0_0(self) -> None:
        records = [(b"GNU.sparse.size", b"4096"), (b"GNU.sparse.numblocks", b"2")]
        for offset, length in ((0, 3), (4000, 2)):
            records += [
                (b"GNU.sparse.offset", b"%d" % offset),
                (b"GNU.sparse.numbytes", b"%d" % length),
            ]
        self.check(
            stream(pax(records), raw(b"s", size=octal(5), data=b"abcde")),
            4096,
            [(0, 3), (4000, 2)],
            b"abcde",
        )

    def test_pax_form_0_1(self) -> None:
        records = [
            (b"GNU.sparse.size", b"4096"),
            (b"GNU.sparse.map", b"0,3,4000,2"),
            (b"GNU.sparse.name", b"real"),
        ]
        source = stream(pax(records), raw(b"GNUSparse/s", size=octal(5), data=b"abcde"))
        self.check(source, 4096, [(0, 3), (4000, 2)], b"abcde")

    def test_pax_form_1_0(self) -> None:
        records = [
            (b"GNU.sparse.major", b"1"),
            (b"GNU.sparse.minor", b"0"),
            (b"GNU.sparse.realsize", b"4096"),
            (b"GNU.sparse.name", b"real"),
        ]
        table = b"2\n0\n3\n4000\n2\n".ljust(512, b"\0")
        source = stream(
            pax(records), raw(b"s", size=octal(517), data=table + b"abcde"), file(b"next", b"n")
        )
        [(entry, data), (following, _)] = read_all(source)
        assert (entry.name, entry.size, entry.sparse, data) == (
            b"real",
            4096,
            [(0, 3), (4000, 2)],
            b"abcde",
        )
        assert following.name == b"next"

    @pytest.mark.parametrize(
        "numbers",
        [
            b"0,3,2,2",
            b"0,-3,4,2",
            b"4095,5",
            b"0,4",
            b"0,3,4000",
            b"5,3,0,2",
            b"0,99999999999999999999",
            b"x,y",
        ],
    )
    def test_impossible_maps_are_refused(self, numbers: bytes) -> None:
        records = [(b"GNU.sparse.size", b"4096"), (b"GNU.sparse.map", numbers)]
        with pytest.raises(TarError):
            read_all(stream(pax(records), raw(b"s", size=octal(5), data=b"abcde")))

    def test_map_in_data_must_fit_in_the_data(self) -> None:
        records = [
            (b"GNU.sparse.major", b"1"),
            (b"GNU.sparse.minor", b"0"),
            (b"GNU.sparse.realsize", b"9"),
        ]
        with pytest.raises(TarError):
            read_all(stream(pax(records), raw(b"s", size=octal(3), data=b"2\n0")))


class TestHostileHeaders:
    @pytest.mark.parametrize(
        ("archive", "problem"),
        [
            (raw(b"n", size=base256(-512)), "size -512 is out of range"),
            (raw(b"n", size=base256(1 << 62)), "is out of range"),
            (raw(b"n", size=b"\xff" * 12), "out of range"),
            (raw(b"n", size=b"1_0\0"), "not an octal number"),
            (raw(b"n", size=b"0x10\0"), "not an octal number"),
            (raw(b"n", size=b"-1\0"), "not an octal number"),
            (raw(b"n", size=b"+1\0"), "not an octal number"),
            (raw(b"n", uid=base256(-1, 8)), "out of range"),
            (raw(b"n", uid=base256(0xFFFFFFFF, 8)), "owner 4294967295"),
            (raw(b"n", checksum_off_by=1), "wrong header checksum"),
            (raw(b"n", kind=b"M"), "unhandled tar entry type b'M'"),
            (raw(b"n", kind=b"Z"), "unhandled tar entry type"),
            (pax_raw(b"not a record") + raw(), "not a decimal"),
            (pax_raw(b"999999999999999999999 a=b\n") + raw(), "PAX record"),
            (pax_raw(b"0 \n") + raw(), "PAX record"),
            (pax_raw(b"-5 a=b\n") + raw(), "not a decimal"),
            (pax_raw(b"6 a=b\0") + raw(), "wrong length"),
            (pax_raw(b"5 =b\n") + raw(), "without a keyword"),
            (pax([(b"path", b"a\0b")]) + raw(), "NUL in path"),
            (pax([(b"size", b"-1")]) + raw(), "not a decimal"),
            (pax([(b"size", "٣".encode())]) + raw(), "not a decimal"),
            (pax([(b"size", b"9223372036854775808")]) + raw(), "out of range"),
            (pax([(b"size", b"9" * 5000)]) + raw(), "not a decimal"),
            (pax([(b"uid", b"4294967295")]) + raw(), "owner"),
            (pax([(b"mtime", b"nan")]) + raw(), "not a"),
            (pax([(b"mtime", b"1.2.3")]) + raw(), "not a time"),
            (pax([(b"path", b"a" * 5000)]) + raw(), "longer than 4095"),
            (pax([(b"SCHILY.xattr.", b"x")]) + raw(), "extended attribute"),
            (raw(b"L", kind=b"L", size=octal(2 << 20)) + raw(), "extended headers of more than"),
            (pax([(b"path", b"x")]), "without an entry"),
            (bytes(512) + raw(), "data after a zero block"),
        ],
    )
    def test_bad_field_is_refused_by_name(self, archive: bytes, problem: str) -> None:
        with pytest.raises(TarError) as caught:
            read_all(stream(archive))
        assert problem in str(caught.value)

    def test_entry_is_named_without_what_a_terminal_would_obey(self) -> None:
        with pytest.raises(TarError) as caught:
            read_all(stream(raw(b"\x1b]0;evil\x07\nname", size=b"zz")))
        assert "\x1b" not in str(caught.value)
        assert "name" in str(caught.value)

    @pytest.mark.parametrize("length", [1, 511, 513, 1000])
    def test_archive_cut_short_is_an_error(self, length: int) -> None:
        whole = file(b"a", b"x" * 700)
        with pytest.raises(TarError, match="unexpected end"):
            read_all(io.BytesIO(whole[:length]))

    def test_data_cut_short_is_an_error_even_when_it_is_skipped(self) -> None:
        reader = TarReader(io.BytesIO(raw(b"big", size=octal(5 << 20)) + b"x" * (1 << 20)))
        assert reader.next() is not None
        with pytest.raises(TarError, match="unexpected end"):
            reader.next()

    def test_limits_are_errors(self) -> None:
        many = b"".join(file(b"%d" % n) for n in range(5))
        with pytest.raises(TarError, match="more than 4 entries"):
            read_all(stream(many), Limits(entries=4))
        with pytest.raises(TarError, match="out of range"):
            read_all(stream(raw(b"big", size=octal(101))), Limits(bytes=100))
        records = [(b"SCHILY.xattr.user.%d" % n, b"") for n in range(5)]
        with pytest.raises(TarError, match="more than 4 extended attributes"):
            read_all(stream(pax(records), raw()), Limits(xattrs=4))

    @given(st.binary(max_size=2000))
    @settings(max_examples=200, deadline=None)
    def test_noise_never_does_more_than_raise(self, noise: bytes) -> None:
        try:
            read_all(io.BytesIO(noise))
        except TarError:
            pass

    @given(position=st.integers(0, 511), value=st.integers(0, 255), fix=st.booleans())
    @settings(max_examples=300, deadline=None)
    def test_one_changed_byte_never_does_more_than_raise(
        self, position: int, value: int, fix: bool
    ) -> None:
        block = bytearray(raw(b"name", size=octal(5), data=b"hello"))
        block[position] = value
        if fix:
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block[:512])
        try:
            read_all(stream(bytes(block), directory(b"d")), Limits(bytes=1 << 30))
        except TarError:
            pass


class TestNumbers:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            (b"0000644\0", 0o644),
            (b"   644 \0", 0o644),
            (b"\0" * 8, 0),
            (b"644\0junk", 0o644),
            (base256(1 << 40), 1 << 40),
            (base256(-2), -2),
        ],
    )
    def test_header_numbers(self, field: bytes, value: int) -> None:
        assert number(field) == value

    @given(st.integers(-(10**18), 10**18))
    def test_times_survive_pax(self, ns: int) -> None:
        assert timestamp(pax_time(ns)) == ns

    @given(st.binary(min_size=1, max_size=300).filter(lambda k: b"=" not in k and b"\0" not in k), st.binary(max_size=300))  # fmt: skip
    def test_records_survive(self, keyword: bytes, value: bytes) -> None:
        assert list(pax_records(pax_record(keyword, value) * 2)) == [(keyword, value)] * 2


names = st.lists(
    st.binary(min_size=1, max_size=120).filter(
        lambda n: b"/" not in n and b"\0" not in n and n not in (b".", b"..")
    ),
    min_size=1,
    max_size=4,
).map(b"/".join)


@given(
    st.lists(
        st.builds(
            lambda name, kind, data, mode, uid, mtime, link, xattrs: (
                Entry(
                    name,
                    kind,
                    mode=mode,
                    uid=uid,
                    size=len(data) if kind == FILE else 0,
                    mtime_ns=mtime,
                    linkname=link if kind in (LINK, SYMLINK) else b"",
                    xattrs=xattrs or None,
                ),
                data if kind == FILE else b"",
            ),
            names,
            st.sampled_from([FILE, DIRECTORY, SYMLINK, LINK]),
            st.binary(max_size=1500),
            st.integers(0, 0o7777),
            st.integers(0, 0xFFFFFFFE),
            st.integers(-(10**18), 10**18),
            names,
            st.dictionaries(
                st.sampled_from([b"user.a", b"security.capability"]),
                st.binary(max_size=50),
                max_size=2,
            ),
        ),
        max_size=5,
    )
)
@settings(max_examples=150, deadline=None)
def test_what_is_written_is_read_back_and_other_tools_agree(
    entries: list[tuple[Entry, bytes]],
) -> None:
    written: list[bytes] = []
    writer = TarWriter(written.append)
    for entry, data in entries:
        writer.add(entry, data)
    writer.close()
    archive = b"".join(written)
    found = read_all(io.BytesIO(archive))
    assert len(found) == len(entries)
    for (entry, data), (again, again_data) in zip(entries, found, strict=True):
        slash = b"/" if entry.kind == DIRECTORY else b""
        assert again.name == entry.name + slash
        assert again_data == data
        for fact in ("kind", "mode", "uid", "gid", "size", "mtime_ns", "linkname", "xattrs"):
            assert getattr(again, fact) == getattr(entry, fact), fact
    with tarfile.open(fileobj=io.BytesIO(archive), errors="surrogateescape") as peer:
        listed = [member.name.encode("utf-8", "surrogateescape") for member in peer]
    assert listed == [entry.name for entry, _ in entries]
