"""From kernels to machine code in this process, through LLVM (no C compiler).

A kernel is a frozen dataclass that says everything about its code and nothing about data: equal kernels are one
function, whichever layer, network or thread count asks for it. Functions take one pointer, to their arguments.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import threading
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from codesign.compiler.isa import ISAS, Isa
from codesign.compiler.kernels import Kernel
from workloads.errors import ConfigError

_LOCK = threading.RLock()
"""LLVM's objects, and the table of what is compiled, are for one thread at a time."""


@functools.cache
def llvm() -> Any:
    """llvmlite's binding, ready for this machine.

    Raises:
        ConfigError: llvmlite is not installed.
    """
    try:
        import llvmlite.binding as binding
    except ImportError as error:
        raise ConfigError("compiling needs llvmlite: pip install codesign[compile]") from error
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    return binding


def symbol(kernel: Kernel) -> str:
    """A kernel's name in object files; equal in every process."""
    return f"{type(kernel).__name__}_{hashlib.sha256(repr(kernel).encode()).hexdigest()[:16]}"


def assemble(kernels: Iterable[Kernel], isa: Isa) -> bytes:
    """An object file with a function for each kernel."""
    with _LOCK:
        return bytes(_target_machine(isa).emit_object(_module(kernels, isa)))


def text_bytes(kernels: Iterable[Kernel], isa: Isa) -> int:
    """How much code kernels are."""
    sections = llvm().ObjectFileRef.from_data(assemble(kernels, isa)).sections()
    return sum(section.size() for section in sections if section.is_text())


def _module(kernels: Iterable[Kernel], isa: Isa) -> Any:
    from llvmlite import ir

    from codesign.compiler.emitter import Emitter

    module = ir.Module()
    module.triple = llvm().get_default_triple()
    for kernel in kernels:
        emitter = Emitter(module, isa, symbol(kernel), kernel.ARGUMENTS)
        kernel.emit(emitter)
        emitter.finish()
    parsed = llvm().parse_assembly(str(module))
    parsed.verify()
    return parsed


def _target_machine(isa: Isa) -> Any:
    return llvm().Target.from_default_triple().create_target_machine(cpu=isa.cpu, features=isa.features, opt=2)


class Code:
    """Kernels of one instruction set, compiled and loaded; grows as new ones are asked for."""

    def __init__(self, isa: Isa) -> None:
        self.isa = isa
        self._addresses: dict[str, int] = {}
        # The engine owns and frees its target machine.
        self._engine = llvm().create_mcjit_compiler(llvm().parse_assembly(""), _target_machine(isa))

    def addresses(self, kernels: Iterable[Kernel]) -> dict[Kernel, int]:
        """Address of each kernel's function, compiled if it was not before."""
        wanted = {kernel: symbol(kernel) for kernel in kernels}
        with _LOCK:
            if missing := [kernel for kernel, name in wanted.items() if name not in self._addresses]:
                self._load(assemble(missing, self.isa), [wanted[kernel] for kernel in missing])
        return {kernel: self._addresses[name] for kernel, name in wanted.items()}

    def function(self, kernel: Kernel) -> Callable[[np.ndarray], None]:
        """A kernel to be called from here with its arguments, int64; the interpreter is free meanwhile."""
        native = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.addresses([kernel])[kernel])
        return lambda arguments: native(arguments.ctypes.data)

    def _load(self, content: bytes, names: Iterable[str]) -> None:
        """Take functions from an object file of `assemble`."""
        self._engine.add_object_file(llvm().ObjectFileRef.from_data(content))
        self._engine.finalize_object()
        self._addresses |= {name: self._engine.get_function_address(name) for name in names}


def code(isa_name: str) -> Code:
    """The process's kernels of one instruction set, kept until it ends: networks share what is equal."""
    with _LOCK:
        return _code(isa_name)


@functools.cache
def _code(isa_name: str) -> Code:
    return Code(ISAS[isa_name])
