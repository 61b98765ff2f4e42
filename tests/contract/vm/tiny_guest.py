# SPDX-License-Identifier: Apache-2.0
"""Guests of some hundred bytes: an ELF file with a PVH note and a few instructions of 32-bit x86.

They let the hypervisor room be tested with real QEMU and real libvirt in a tenth of a second, without a kernel.
"""

import struct

_LOAD_ADDRESS = 0x100000
_CODE_OFFSET = 0x1000
COUNTED_DIGITS = 8  # of each line that ``count`` writes

HALT = bytes.fromhex("faf4ebfd")  # cli; hlt; jmp -3
# The ACPI sleep register of q35 (PM1a_cnt): mov dx,0x604; mov ax,0x2000; out dx,ax
POWER_OFF = bytes.fromhex("66ba0406 66b80020 66ef") + HALT
# mov dx,0xcf9; mov al,6; out dx,al
REBOOT = bytes.fromhex("66baf90c b006 ee") + HALT


def say(text: bytes) -> bytes:
    """Write to the first serial port: mov dx,0x3f8; (mov al,char; out dx,al)..."""
    return bytes.fromhex("66baf803") + b"".join(b"\xb0" + bytes([char]) + b"\xee" for char in text)


def count(fill_mib: int = 0) -> bytes:
    """Add one to a number in memory and write it to the console, for ever: a line of 8 digits every few ms.

    Before that ``fill_mib`` of memory are filled.
    """
    # mov edi,0x400000; mov ecx,dwords; mov eax,0x5a5a5a5a; rep stosd; mov edi,0x300000
    fill = b"\xbf\x00\x00\x40\x00\xb9" + struct.pack("<I", fill_mib << 18) + bytes.fromhex("b85a5a5a5a f3ab")
    # inc dword [edi]; mov ebx,[edi]; mov ecx,8; mov dx,0x3f8
    line = bytes.fromhex("ff07 8b1f b908000000 66baf803")
    # next: rol ebx,4; mov al,bl; and al,15; cmp al,10; sbb al,0x69; das; out dx,al; loop next
    line += bytes.fromhex("c1c304 88d8 240f 3c0a 1c69 2f ee e2f1")
    # mov al,10; out dx,al; mov ecx,1000000; wait: loop wait
    line += bytes.fromhex("b00a ee b940420f00 e2fe")
    back = struct.pack("<b", -len(line) - 2)
    return fill + bytes.fromhex("bf00003000") + line + b"\xeb" + back


def panic() -> bytes:
    """Find the pvpanic device on bus 0, map it at 0xfe800000, report a panic."""
    code = b""
    for slot in range(32):
        config = 0x80000000 | slot << 11
        found = (
            _pci_write(config | 0x10, 0xFE800000)
            + _pci_write(config | 0x04, 0x2)
            + bytes.fromhex("c605")  # mov byte [0xfe800000],1
            + struct.pack("<IB", 0xFE800000, 1)
        )
        # mov eax,config; mov dx,0xcf8; out dx,eax; mov dx,0xcfc; in eax,dx; cmp eax,0x00111b36; jne over
        code += b"\xb8" + struct.pack("<I", config) + bytes.fromhex("66baf80c ef 66bafc0c ed")
        code += b"\x3d" + struct.pack("<I", 0x00111B36) + b"\x0f\x85" + struct.pack("<i", len(found)) + found
    return code + HALT


def _pci_write(address: int, value: int) -> bytes:
    return (
        b"\xb8"
        + struct.pack("<I", address)
        + bytes.fromhex("66baf80c ef b8")
        + struct.pack("<I", value)
        + bytes.fromhex("66bafc0c ef")
    )


def render_kernel(code: bytes) -> bytes:
    """ELF32 with XEN_ELFNOTE_PHYS32_ENTRY (18), see xen/include/public/elfnote.h."""
    note = struct.pack("<III4sI", 4, 4, 18, b"Xen\0", _LOAD_ADDRESS)
    header = b"\x7fELF\x01\x01\x01" + bytes(9)
    header += struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, _LOAD_ADDRESS, 52, 0, 0, 52, 32, 2, 0, 0, 0)
    header += struct.pack(
        "<IIIIIIII", 1, _CODE_OFFSET, _LOAD_ADDRESS, _LOAD_ADDRESS, len(code), len(code), 5, 0x1000
    )
    header += struct.pack("<IIIIIIII", 4, 52 + 64, 0, 0, len(note), len(note), 4, 4)
    return (header + note).ljust(_CODE_OFFSET, b"\0") + code
