#!/usr/bin/env python3
"""Jane Austen's six novels as plain text, from the Debian package r-cran-janeaustenr.

    apt-get download r-cran-janeaustenr && dpkg -x r-cran-janeaustenr_*.deb DIR
    python scripts/austen_text.py DIR            # prints the titles, sizes and hashes

The novels (1811 to 1818) are in the public domain everywhere; the package only carries them. `novels(DIR)` returns
them in the order of the package, as {title: text} with one paragraph a line and an empty line between paragraphs.

The package holds an R "lazy load" database: a .rdb file of records, each a big-endian u32 (the length of the
inflated record) followed by a zlib stream. The record of a novel is R's XDR serialisation of a character vector; its
elements are CHARSXP records: a flags word whose low byte is 9, a length, then the bytes.
"""
import hashlib
import pathlib
import re
import struct
import sys
import zlib

CHARSXP, STRSXP = 9, 16
CLOSING = ("THE END", "FINIS", "A NOTE ON THE TEXT")
TITLES = ["Sense and Sensibility", "Pride and Prejudice", "Mansfield Park", "Emma", "Northanger Abbey", "Persuasion"]


def records(blob):
    """The inflated records of an .rdb file, in file order."""
    at = 0
    while at + 4 < len(blob):
        stream = zlib.decompressobj()
        record = stream.decompress(blob[at + 4:])
        assert len(record) == struct.unpack_from(">I", blob, at)[0], "not an .rdb file as expected"
        yield record
        at = len(blob) - len(stream.unused_data)


def strings(record):
    """The elements of a record that is a serialised character vector; [] for any other record."""
    encoding_bytes = struct.unpack_from(">I", record, 14)[0]  # after "X\n", three versions of 4 bytes each
    at = 18 + encoding_bytes
    kind, count = struct.unpack_from(">II", record, at)
    if kind & 0xFF != STRSXP:
        return []
    at, lines = at + 8, []
    for _ in range(count):
        flags, length = struct.unpack_from(">Ii", record, at)
        assert flags & 0xFF == CHARSXP, "a character vector holds something else"
        lines.append(record[at + 8:at + 8 + max(length, 0)].decode("utf-8"))
        at += 8 + max(length, 0)
    return lines


def reflow(lines):
    """Hard-wrapped lines to one paragraph a line; what follows the author's closing line (editors' notes) goes."""
    closing = [i for i, line in enumerate(lines) if line.strip().upper().lstrip("*") in CLOSING]
    lines = lines[:closing[-1]] if closing else lines
    paragraphs = re.split(r"\n\s*\n", "\n".join(line.rstrip() for line in lines))
    joined = (re.sub(r"\s+", " ", p).strip() for p in paragraphs)
    return "\n\n".join(p for p in joined if p) + "\n"


def novels(root):
    """{title: text} for the six novels under `root`, where the package was unpacked."""
    found = sorted(pathlib.Path(root).rglob("janeaustenr/data/Rdata.rdb"))
    if not found:
        sys.exit(f"no janeaustenr/data/Rdata.rdb under {root}: see the first lines of {__file__}")
    texts = [reflow(ls) for ls in map(strings, records(found[0].read_bytes())) if len(ls) > 1000]
    by_title = {}
    for title in TITLES:
        matching = [t for t in texts if t[:300].upper().startswith(title.upper())]
        assert len(matching) == 1, f"{title}: {len(matching)} texts"
        by_title[title] = matching[0]
    return by_title


if __name__ == "__main__":
    for name, text in novels(sys.argv[1]).items():
        print(f"{name:24} {len(text.encode()):9,} bytes  sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}  "
              f"{text[:60]!r} … {text[-50:]!r}")
