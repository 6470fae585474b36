"""Scalars in TensorBoard's event files, written without TensorFlow: TFRecords of a protocol buffer of four fields.

The record: 8 bytes of length, their masked CRC-32C, the data, its masked CRC-32C (tensorflow's record_writer.cc).
The message: Event {1: wall_time double, 2: step int64, 3: file_version string, 5: Summary {1: Value {1: tag string,
2: simple_value float}}} (tensorflow's event.proto and summary.proto).
"""

import functools
import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path


class EventFile:
    """Appends to a new event file in `folder`; TensorBoard shows all files of a folder as one run."""

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() // 1_000_000:013d}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("ab")
        self._file.write(record(event(time.time(), version="brain.Event:2")))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._file.write(record(event(time.time(), step=step, values=values)))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def event(wall_time: float, *, step: int = 0, version: str = "", values: Mapping[str, float] | None = None) -> bytes:
    """The message, its fields in their order."""
    message = b"\x09" + struct.pack("<d", wall_time)
    if step:
        message += b"\x10" + _varint(step)
    if version:
        message += b"\x1a" + _delimited(version.encode())
    if values:
        summary = (b"\x0a" + _delimited(_value(tag, value)) for tag, value in values.items())
        message += b"\x2a" + _delimited(b"".join(summary))
    return message


def _value(tag: str, value: float) -> bytes:
    return b"\x0a" + _delimited(tag.encode()) + b"\x15" + struct.pack("<f", value)


def _delimited(data: bytes) -> bytes:
    return _varint(len(data)) + data


def _varint(number: int) -> bytes:
    """Seven bits a byte, lowest first; the highest bit says that more follow."""
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes([*encoded, number])


def record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", _masked(length)) + data + struct.pack("<I", _masked(data))


def _masked(data: bytes) -> int:
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """CRC-32 with Castagnoli's polynomial (RFC 3720, appendix B.4)."""
    crc, table = 0xFFFFFFFF, _table()
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


@functools.cache
def _table() -> tuple[int, ...]:
    table = []
    for number in range(256):
        for _ in range(8):
            number = number >> 1 ^ 0x82F63B78 * (number & 1)
        table.append(number)
    return tuple(table)
