"""Files that try to run code, to climb out of their folder, or to take all memory."""

import collections
import functools
import gzip
import io
import json
import os
import pickle
import struct
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> tuple:
        return self.reduced


_dumps = functools.partial(pickle.dumps, protocol=2)  # torch.save's; of others torch.load does not get to the gadget


def gadgets(canary: Path) -> dict[str, bytes]:
    """Pickles that make the canary where Python's own unpickler reads them."""
    command, code = f"touch {canary}", f"open({str(canary)!r}, 'w').close()"
    text = b"S'" + command.encode() + b"'\n"
    inner = _dumps(Call(os.system, command))
    old = io.BytesIO()
    torch.save(Call(os.system, command), old, _use_new_zipfile_serialization=False)
    return {
        "system": _dumps(Call(os.system, command)),
        "protocol 0": pickle.dumps(Call(os.system, command), protocol=0),
        "process": _dumps(Call(subprocess.getoutput, command)),
        "eval": _dumps(Call(eval, code)),
        "exec": _dumps(Call(exec, code)),
        "open": _dumps(Call(open, str(canary), "w")),
        "nested": _dumps({"model": [collections.OrderedDict(x=(1, Call(os.system, command)))]}),
        "beside tensors": _dumps({"state_dict": {"w": 1}, "optimizer": Call(os.system, command)}),
        "pickle in pickle": _dumps(Call(pickle.loads, inner)),
        "storage in pickle": _dumps(Call(torch.storage._load_from_bytes, old.getvalue())),
        "map": _dumps(Call(list, Call(map, os.system, [command]))),
        "getattr": b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n(S'os'\ntRS'system'\ntR(" + text + b"tR.",
        "instance": b"(" + text + b"ios\nsystem\n.",
        "dotted": b"\x80\x04\x8c\x09posixpath\x8c\x09os.system\x93(" + text + b"tR.",
        "state": b"cfunctools\npartial\n(cbuiltins\nprint\ntR(cos\nsystem\n(" + text + b"t}Ntb(tR.",
    }


def torch_zip(data: bytes, prefix: str = "archive", method: int = zipfile.ZIP_STORED) -> bytes:
    """A file of torch.save with another pickle in it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in {"data.pkl": data, "byteorder": b"little", "version": b"3\n"}.items():
            archive.writestr(f"{prefix}/{name}", content)
    return file.getvalue()


def torch_legacy(data: bytes, place: int = 3) -> bytes:
    """A file of torch.save before 1.6, one of whose five pickles is another."""
    told = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, told, {}, [])]
    parts[place] = data
    return b"".join(parts)


def torch_tar(data: bytes) -> bytes:
    """A file of torch.save before 0.1.10, with a member that climbs out."""
    return tar({"storages": pickle.dumps(0), "tensors": pickle.dumps(0), "pickle": data, "../outside/canary": b"x"})


def torch_script(data: bytes) -> bytes:
    """A TorchScript archive with a pickle for its constants."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in {"constants.pkl": data, "data.pkl": data, "version": b"3\n", "code/x.py": b""}.items():
            archive.writestr(f"m/{name}", content)
    return file.getvalue()


def memo_bomb() -> bytes:
    """Ten bytes that have the unpickler in C make room for two thousand million objects."""
    return b"\x80\x02}r\xff\xff\xff\x7f."


def bytes_bomb() -> bytes:
    """A bytearray of a terabyte, of which nothing is there."""
    return b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"x."


def tuple_bomb() -> bytes:
    """A dict with a key so deep that to hash it overflows the stack."""
    return b"\x80\x02})" + b"\x85" * 300_000 + b"K\x01s."


def doubling_bomb() -> bytes:
    """Dicts in dicts, each twice in the next: 2**64 to walk through."""
    data = b"\x80\x02}q\x00"
    for level in range(1, 65):
        before = bytes([level - 1])
        data += b"}q" + bytes([level]) + b"(X\x01\x00\x00\x00ah" + before + b"X\x01\x00\x00\x00bh" + before + b"u"
    return data + b"."


def array_pickle(dtype: object = "f4", shape: tuple = (1 << 40,), order: str = "<") -> bytes:
    """A dict with an array that is not what its type and shape say."""
    array = np.zeros(1, np.float32)
    rebuild, given, _ = array.__reduce__()

    class _Array:
        def __reduce__(self) -> tuple:
            return rebuild, given, (1, shape, _Dtype(), False, b"\0" * 8)

    class _Dtype:
        def __reduce__(self) -> tuple:
            return np.dtype, (dtype, False, True), (3, order, None, None, None, -1, -1, 0)

    return pickle.dumps({"conv1.weight": _Array()})


def tar(members: dict[str, bytes], *links: tarfile.TarInfo) -> bytes:
    """A tar file; links come first, so that members may go through them."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for link in links:
            archive.addfile(link)
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def _link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    link = tarfile.TarInfo(name)
    link.type, link.linkname = kind, target
    return link


def climbing_tars(canary: Path) -> dict[str, bytes]:
    """Archives that put the canary outside of the folder that they are unpacked in."""
    outside, name = str(canary.parent), canary.name
    symbolic, hard = tarfile.SYMTYPE, tarfile.LNKTYPE
    device = tarfile.TarInfo("device")
    device.type, device.devmajor, device.devminor = tarfile.CHRTYPE, 1, 5
    return {
        "dots": tar({f"../outside/{name}": b"x"}),
        "dots inside": tar({f"a/b/../../../outside/{name}": b"x"}),
        "absolute": tar({str(canary): b"x"}),
        "symbolic link": tar({f"out/{name}": b"x"}, _link("out", outside, symbolic)),
        "relative link": tar({f"out/{name}": b"x"}, _link("out", "../outside", symbolic)),
        "chain of links": tar(
            {f"c/{name}": b"x"},
            _link("a", ".", symbolic),
            _link("a/b", "..", symbolic),
            _link("c", "b/outside", symbolic),
        ),
        "hard link": tar({"passwd": b"x"}, _link("passwd", "/etc/passwd", hard)),
        "device": tar({}, device),
        "unicode": tar({f"\u2024\u2024/../../outside/{name}": b"x"}),
    }


def safetensors(header: object, body: bytes = b"\0" * 64, length: int | None = None) -> bytes:
    """A file of a header, JSON or bytes, whose length may be another than it says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def hostile_safetensors() -> dict[str, bytes]:
    """Files that break the format's rules."""

    def entry(start: int, stop: int, dtype: str = "F32", shape: tuple = (4,)) -> dict:
        return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}

    one = json.dumps(entry(0, 16))
    return {
        "huge header": safetensors({"a": entry(0, 16)}, length=1 << 40),
        "header of all": safetensors({"a": entry(0, 16)}, length=1 << 63),
        "header of spaces": safetensors(b" " * 1000),
        "overlap": safetensors({"a": entry(0, 32, shape=(8,)), "b": entry(16, 64, shape=(12,))}),
        "hole": safetensors({"a": entry(0, 16), "b": entry(48, 64)}),
        "negative offset": safetensors({"a": entry(-16, 0)}),
        "key twice": safetensors(f'{{"a": {one}, "a": {one}}}'.encode(), b"\0" * 16),
        "another type": safetensors({"a": entry(0, 64, "F99", (16,))}),
        "another size": safetensors({"a": entry(0, 64, "F64", (16,))}),
        "huge shape": safetensors({"a": entry(0, 64, "F32", (1 << 40, 1 << 40))}),
        "cut short": safetensors({"a": entry(0, 64, "F32", (16,))}, b"\0" * 40),
        "deep": safetensors(b'{"a":' * 50_000),
    }


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """A PNG that announces a size and holds next to nothing."""
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = _chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + data + _chunk(b"IEND", b"")


def image_bombs() -> dict[str, bytes]:
    """Images, or what calls itself one, that unfold to more than anybody wants."""
    webp = b"VP8X\x0a\0\0\0\0\0\0\0" + (16383).to_bytes(3, "little") * 2
    zeros = zlib.compress(b"\0" * (64 << 20), 1)
    fits = "".join(f"{card:<80}" for card in ("SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 2", "END")).ljust(2880).encode()
    return {
        "png of 100 Mpx": png(10_000, 10_000),
        "png of 225 Mpx": png(15_000, 15_000),
        "png of all pixels": png((1 << 31) - 1, (1 << 31) - 1),
        "png with a bomb for a text": png(8, 8, _chunk(b"zTXt", b"a\0\0" + zeros)),
        "png with a bomb for a profile": png(8, 8, _chunk(b"iCCP", b"a\0\0" + zeros)),
        "gif of a large screen": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b";",
        "gif of a large frame": b"GIF89a\x01\0\x01\0\0\0\0,\0\0\0\0"
        + struct.pack("<HHB", 65535, 65535, 0)
        + b"\x02\0;",
        "webp of 268 Mpx": b"RIFF" + struct.pack("<I", len(webp) + 4) + b"WEBP" + webp,
        "ppm": b"P6 100000 100000 255\n",
        "bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 60000, 60000, 1, 24, 0, 0, 1, 1, 0, 0),
        "tiff": _tiff(100_000, 100_000),
        "fits in gzip": fits + gzip.compress(b"\0" * (1 << 20)),
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) (w) file\n",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    }


def _tiff(width: int, height: int, following: int = 0) -> bytes:
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: width * height}
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, min(value, 2**32 - 1)) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + fields + struct.pack("<I", following)


def round_tiff() -> bytes:
    """A TIFF whose next picture is itself."""
    return _tiff(8, 8, following=8)


def gif_of_frames(count: int) -> bytes:
    """A GIF of very many frames of a pixel."""
    frame = b",\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0"
    return b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff" + frame * count + b";"


def hostile_yaml(canary: Path) -> dict[str, bytes]:
    """What is no settings file, below `method:` of one."""
    command = f"touch {canary}"
    laughs = "".join(f"  a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    merges = "".join(f"  b{n}: &b{n} {{<<: [{', '.join([f'*b{n - 1}'] * 9)}]}}\n" for n in range(1, 12))
    made = f"{{class_path: logging.FileHandler, init_args: {{filename: {canary}}}}}"
    as_json = json.dumps({"class_path": "logging.FileHandler", "init_args": {"filename": str(canary)}})
    escaped = as_json.replace("class_path", "class\\u005fpath")
    begin = "method:\n  name: simsiam\n"
    return {
        name: text if isinstance(text, bytes) else (begin + text).encode()
        for name, text in {
            "call": f"  x: !!python/object/apply:os.system ['{command}']\n",
            "new": f"  x: !!python/object/new:subprocess.Popen [['touch', '{canary}']]\n",
            "name": "  x: !!python/name:os.system\n",
            "module": "  x: !!python/module:antigravity\n",
            "laughs": f"  a0: &a0 [x, x]\n{laughs}",
            "merges": f"  b0: &b0 {{k: 1}}\n{merges}",
            "itself": "  x: &x [*x]\n",
            "scalar": f"  x: {'a' * (10 << 20)}\n",
            "deep": f"  x: {'[' * 30_000}\n",
            "key twice": "  x: 1\n  x: 2\n",
            "latin1": "method:\n  name: \xe9\n".encode("latin1"),
            "utf-16": (begin + "  x: 1\n").encode("utf-16"),
            "number": f"  x: {'9' * 10_000}\n",
            "class": f"  x: {made}\n",
            "class in a text": f"  x: '{made}'\n",
            "class in json": f"  x: '{as_json}'\n",
            "class in escaped json": f"  x: '{escaped}'\n",
            "class in a block": f"  x: |\n    class_path: logging.FileHandler\n    init_args: {{filename: {canary}}}\n",
        }.items()
    }


def hostile_xml() -> dict[str, bytes]:
    """Annotations that unfold, or read other files."""
    laughs = '<!ENTITY a0 "ha">' + "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
    long = "x" * 100_000
    return {
        "laughs": f"<!DOCTYPE a [{laughs}]><annotation>&a9;</annotation>".encode(),
        "quadratic": f'<!DOCTYPE a [<!ENTITY b "{long}">]><annotation>{"&b;" * 20_000}</annotation>'.encode(),
        "file": b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotation>&b;</annotation>',
        "utf-16": f"<!DOCTYPE a [{laughs}]><annotation>&a9;</annotation>".encode("utf-16"),
        "no encoding": b'<?xml version="1.0" encoding="no-such"?><annotation/>',
        "huge": b"<annotation>" + b" " * (16 << 20) + b"</annotation>",
        "cut short": b"<annotation><object>",
    }
