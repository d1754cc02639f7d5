"""Pruned networks as native code of this machine (PCONV's and PatDNN's framework, for x86-64).

A layer graph with its weights goes through graph passes (`steps`), layouts (`layout`, `network`), storage of sparse
weights (`storage`), kernels written in LLVM IR (`kernels`, `emitter`, `jit`) and a program of kernel calls (`program`,
`runtime`). `ops` holds a file a family of operators, `isa` the instruction sets.
"""

from codesign.compiler.compiled import Compiled, compile_network, load_compiled

__all__ = ["Compiled", "compile_network", "load_compiled"]
