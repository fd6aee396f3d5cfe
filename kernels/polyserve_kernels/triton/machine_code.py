"""What a compiled kernel is made of: registers, spills, shared memory, matrix instructions, copies in loops, occupancy.

Read from cubins with `cuobjdump` and `nvdisasm`, which come with Triton, so no GPU is needed.
Together   `nvdisasm` takes longer to start than to read a kernel: it is given the instructions of many in a row, so a
           kernel's addresses begin anywhere
Loops      natural loops of the control flow graph: a branch back to a block that every path to the branch has passed.
           What is kept of a kernel is its innermost loops that hold matrix instructions
Occupancy  warps of one multiprocessor that registers, shared and tensor memory leave room for, over all it can hold
Source     https://docs.nvidia.com/cuda/cuda-binary-utilities/  and the CUDA programming guide's table of capabilities
"""

import re
import struct
import subprocess
import tempfile
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import triton

_TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]+)\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z]\w*(?:\.\w+)*)\s*([^;]*);", re.MULTILINE)
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)")
_MATRIX = re.compile(r"^(HGMMA|QGMMA|IGMMA|HMMA|QMMA|IMMA|DMMA|UTC[A-Z]?[A-Z]MMA)")
_ASYNC_COPY = re.compile(r"^(LDGSTS|UTMALDG|UBLKCP)")

_WARP_SIZE = 32
_REGISTERS = 65536  # of a multiprocessor
_REGISTER_UNIT = 256  # registers are given to a warp in units of this
_MAX_BLOCKS = 32  # of a multiprocessor
_RESERVED_SHARED_BYTES = 1024  # of each block, for the system


@dataclass(frozen=True, slots=True)
class Limits:
    """What one multiprocessor of an architecture has."""

    max_warps: int
    shared_bytes: int  # for all blocks
    block_shared_bytes: int  # for one block
    tensor_columns: int = 0  # of tensor memory, for all blocks


LIMITS = {
    80: Limits(64, 164 * 1024, 163 * 1024),
    86: Limits(48, 100 * 1024, 99 * 1024),
    90: Limits(64, 228 * 1024, 227 * 1024),
    100: Limits(64, 228 * 1024, 227 * 1024, tensor_columns=512),
}


@dataclass(frozen=True, slots=True)
class Loop:
    """An innermost loop that holds matrix instructions, as counts of instructions."""

    matrix: int
    async_copies: int  # from global to shared memory: LDGSTS, UTMALDG, UBLKCP
    loads: int  # from global memory to registers, which wait: LDG


@dataclass(frozen=True, slots=True)
class Code:
    registers: int  # a thread
    spill_bytes: int  # a thread's stack, or 4 for each spill instruction where there is no stack
    shared_bytes: int  # a block, dynamic and static
    matrix: dict[str, int]  # matrix instruction -> how many stand in the code, as "HGMMA.64x128x16.F32.BF16"
    async_copies: int
    loops: tuple[Loop, ...]
    num_instructions: int
    occupancy: float  # 0 to 1


@dataclass(frozen=True, slots=True)
class Instruction:
    address: int
    guarded: bool  # by a predicate: what follows may be reached all the same
    opcode: str
    operands: str


@dataclass(frozen=True, slots=True)
class Binary:
    """A cubin with one kernel, and what is asked for when it is launched, which is not in the cubin."""

    cubin: bytes
    num_warps: int
    dynamic_shared_bytes: int
    tensor_columns: int


def read_codes(binaries: Sequence[Binary], arch: int) -> list[Code]:
    """The facts of kernels for one architecture."""
    texts = [_instruction_bytes(binary.cubin) for binary in binaries]
    instructions = parse_sass(_disassembled(b"".join(texts), arch))
    codes, end = [], 0
    for binary, text in zip(binaries, texts, strict=True):
        begin, end = end, end + len(text)
        first, behind = (bisect_left(instructions, place, key=_address) for place in (begin, end))
        codes.append(_read_code(binary, instructions[first:behind], arch))
    return codes


def _read_code(binary: Binary, instructions: Sequence[Instruction], arch: int) -> Code:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.cubin)
        file.flush()
        usage = _USAGE.search(_run("cuobjdump", "--dump-resource-usage", file.name))
    assert usage is not None, "cuobjdump tells no resource usage"
    registers, stack_bytes, static_bytes = map(int, usage.groups())
    if arch >= 90:  # from there on cuobjdump counts the system's part too
        static_bytes = max(0, static_bytes - _RESERVED_SHARED_BYTES)
    shared_bytes = binary.dynamic_shared_bytes + static_bytes
    opcodes = Counter(instruction.opcode for instruction in instructions)
    num_spills = sum(count for opcode, count in opcodes.items() if opcode.split(".")[0] in ("LDL", "STL"))
    return Code(
        registers=registers,
        spill_bytes=stack_bytes or 4 * num_spills,
        shared_bytes=shared_bytes,
        matrix={opcode: count for opcode, count in sorted(opcodes.items()) if _MATRIX.match(opcode)},
        async_copies=_count(_ASYNC_COPY, instructions),
        loops=tuple(read_loops(instructions)),
        num_instructions=len(instructions),
        occupancy=occupancy(arch, binary.num_warps, registers, shared_bytes, binary.tensor_columns),
    )


def _instruction_bytes(cubin: bytes) -> bytes:
    """The one section of an ELF file whose name begins with `.text.`"""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    entry_size, num_entries, names = struct.unpack_from("<HHH", cubin, 0x3A)
    # of each section: name, type, flags, address, place in the file, size
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + i * entry_size) for i in range(num_entries)]
    names_start = sections[names][4]
    (text,) = (
        cubin[place : place + size]
        for name, _, _, _, place, size in sections
        if cubin.startswith(b".text.", names_start + name)
    )
    return text


def _disassembled(instructions: bytes, arch: int) -> str:
    with tempfile.NamedTemporaryFile() as file:
        file.write(instructions)
        file.flush()
        return _run("nvdisasm", "--binary", f"SM{arch}{'a' if arch >= 90 else ''}", file.name)


def occupancy(arch: int, num_warps: int, registers: int, shared_bytes: int, tensor_columns: int) -> float:
    limits = LIMITS[arch]
    warp_registers = -(-registers * _WARP_SIZE // _REGISTER_UNIT) * _REGISTER_UNIT
    blocks = min(
        _MAX_BLOCKS,
        limits.max_warps // num_warps,
        _REGISTERS // warp_registers // num_warps,
        limits.shared_bytes // (shared_bytes + _RESERVED_SHARED_BYTES),
        limits.tensor_columns // tensor_columns if tensor_columns else _MAX_BLOCKS,
    )
    return blocks * num_warps / limits.max_warps


def parse_sass(text: str) -> list[Instruction]:
    return [
        Instruction(int(address, 16), guard not in ("", None, "PT", "UPT"), opcode, operands.strip())
        for address, guard, opcode, operands in _INSTRUCTION.findall(text)
    ]


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([_TOOLS / tool, *arguments], check=True, capture_output=True, text=True).stdout


def _address(instruction: Instruction) -> int:
    return instruction.address


def _count(pattern: re.Pattern[str], instructions: Iterable[Instruction]) -> int:
    return sum(1 for instruction in instructions if pattern.match(instruction.opcode))


def read_loops(instructions: Sequence[Instruction]) -> Iterator[Loop]:
    """The innermost natural loops that hold matrix instructions."""
    graph = _Graph(instructions)
    bodies = {}
    for body in graph.loops():
        inside = [instruction for block in sorted(body) for instruction in graph.blocks[block]]
        if _count(_MATRIX, inside):
            bodies[body] = inside
    for body, inside in bodies.items():
        if not any(other < body for other in bodies):
            yield Loop(
                matrix=_count(_MATRIX, inside),
                async_copies=_count(_ASYNC_COPY, inside),
                loads=_count(re.compile(r"^LDG(\.|$)"), inside),
            )


class _Graph:
    """Blocks of instructions that run one after another, and which block may follow which."""

    def __init__(self, instructions: Sequence[Instruction]) -> None:
        meeting_points = _meeting_points(instructions)
        starts = {instructions[0].address} if instructions else set()
        for i, instruction in enumerate(instructions):
            if _name(instruction) in _ENDS_BLOCK:
                starts.update(following.address for following in instructions[i + 1 : i + 2])
                starts.update(_targets(instruction, meeting_points))
        self.blocks: list[list[Instruction]] = []
        for instruction in instructions:
            if instruction.address in starts:
                self.blocks.append([])
            self.blocks[-1].append(instruction)
        block_at = {block[0].address: i for i, block in enumerate(self.blocks)}
        self.next: list[list[int]] = []
        for i, block in enumerate(self.blocks):
            follows = [block_at[target] for target in _targets(block[-1], meeting_points) if target in block_at]
            if _falls_through(block[-1]) and i + 1 < len(self.blocks):
                follows.append(i + 1)
            self.next.append(follows)

    @cached_property
    def previous(self) -> list[list[int]]:
        previous: list[list[int]] = [[] for _ in self.blocks]
        for i, follows in enumerate(self.next):
            for j in follows:
                previous[j].append(i)
        return previous

    def loops(self) -> Iterator[frozenset[int]]:
        """The blocks of each natural loop; those of two branches back to one block are one loop."""
        dominators = self._dominators()
        bodies: dict[int, set[int]] = {}
        for tail, follows in enumerate(self.next):
            for head in follows:
                if dominators[tail] >> head & 1:
                    bodies.setdefault(head, set()).update(self._body(head, tail))
        yield from map(frozenset, bodies.values())

    def _body(self, head: int, tail: int) -> set[int]:
        body, pending = {head, tail}, [tail] if tail != head else []
        while pending:
            for block in self.previous[pending.pop()]:
                if block not in body:
                    body.add(block)
                    pending.append(block)
        return body

    def _dominators(self) -> list[int]:
        """For each block the set of blocks that every path to it passes, as bits; no bit for what is never reached."""
        everything = (1 << len(self.blocks)) - 1
        dominators = [1, *(everything for _ in self.blocks[1:])]
        changed = True
        while changed:
            changed = False
            for i in range(1, len(self.blocks)):
                common = everything
                for block in self.previous[i]:
                    common &= dominators[block]
                common |= 1 << i
                if common != dominators[i]:
                    dominators[i], changed = common, True
        return dominators


_ENDS_BLOCK = {"BRA", "BRX", "JMP", "EXIT", "RET", "BSYNC"}


def _name(instruction: Instruction) -> str:
    return instruction.opcode.split(".")[0]


def _meeting_points(instructions: Iterable[Instruction]) -> dict[str, list[int]]:
    """Barrier register -> where the threads that meet there go on."""
    points: dict[str, list[int]] = {}
    for instruction in instructions:
        if _name(instruction) == "BSSY":
            barrier, target = instruction.operands.split(",")
            points.setdefault(barrier.strip(), []).append(int(target, 16))
    return points


def _targets(instruction: Instruction, meeting_points: dict[str, list[int]]) -> list[int]:
    if _name(instruction) == "BSYNC":
        return meeting_points.get(instruction.operands, [])
    if _name(instruction) not in ("BRA", "JMP"):
        return []
    return [int(target, 16) for target in re.findall(r"\b0x([0-9a-f]+)", instruction.operands)]


def _falls_through(instruction: Instruction) -> bool:
    """Whether the next instruction can follow. `BRA.U UP0, 0x70` carries its condition as an operand."""
    if _name(instruction) in ("BRA", "JMP"):
        return instruction.guarded or "," in instruction.operands
    return instruction.guarded or _name(instruction) not in _ENDS_BLOCK
