"""From Python source to object code, and from object code to an address.

Numba is the front end: it types a kernel and writes LLVM's IR. Its own way from there is made for
functions that Python calls, and costs more than half of the time: wrappers that box arguments and
raise exceptions, passes that rewrite arrays, closures and exceptions, and every LLVM pass two or
three times. A kernel takes and gives plain words and raises nothing, so a short list of passes is
enough, then one run of LLVM's optimizer over a module that exports one function.
"""

from __future__ import annotations

import linecache
import warnings
from functools import cache
from typing import Any, cast

import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba import types
from numba.core import compiler, typed_passes, untyped_passes
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler_lock import global_compiler_lock
from numba.core.compiler_machinery import PassManager
from numba.core.registry import cpu_target

from minigrad.backend.cpu import machine

# A lazy property, which hides its type. When made, it tells LLVM where Numba's runtime is.
_CONTEXT = cast("Any", cpu_target.target_context)
_ARGUMENTS = (types.intp, types.intp, types.intp)
# No `nnan` and no `ninf`: NaN and Inf keep their meaning. `reassoc` is on the additions of
# reductions only (`accumulate`): elsewhere LLVM would turn (x - k) - mean into x - (k + mean).
FASTMATH = {"contract", "nsz", "arcp"}


def kernel_options() -> dict[str, Any]:
    """The options every kernel is compiled with, and every `@njit` function it calls."""
    return {
        "nogil": True,
        "error_model": "numpy",
        "fastmath": FASTMATH,
        "boundscheck": False,
        "no_cpython_wrapper": True,
        "no_cfunc_wrapper": True,
    }


class _Passes(compiler.CompilerBase):
    """What it takes to compile loops over scalars."""

    def define_pipelines(self) -> list[Any]:
        passes = PassManager("kernel")
        for each in (
            untyped_passes.TranslateByteCode,
            untyped_passes.FixupArgs,
            untyped_passes.IRProcessing,
            untyped_passes.InlineInlinables,
            untyped_passes.ReconstructSSA,
            typed_passes.NopythonTypeInference,
            typed_passes.PreLowerStripPhis,
            typed_passes.IRLegalization,
            typed_passes.AnnotateTypes,
            typed_passes.NativeLowering,
            typed_passes.NoPythonBackend,
        ):
            passes.add_pass(each, each.__name__)
        passes.finalize()
        return [passes]


class _KernelCode(JITCodeLibrary):
    """The IR of a kernel and of what it calls, optimized as a whole only."""

    def _optimize_functions(self, ll_module: Any) -> None:
        ll_module.data_layout = self._codegen._data_layout

    def object_code(self, entry: str) -> bytes:
        """The machine code. Only `entry` can be called from outside."""
        module = self._final_module
        for library in dict.fromkeys(self._linking_libraries):
            module.link_in(library._get_module_for_linking(), preserve=True)
        for symbol in (*module.functions, *module.global_variables):
            if not symbol.is_declaration and symbol.name != entry:
                symbol.linkage = "internal"
        options = llvm.create_pipeline_tuning_options(speed_level=3)
        options.loop_vectorization, options.slp_vectorization = True, False
        passes = llvm.create_pass_builder(_machine(), options)
        passes.getModulePassManager().run(module, passes)
        module.verify()
        return _machine().emit_object(module)


@cache
def _flags() -> Any:
    flags: Any = compiler.Flags()
    options = kernel_options() | {"nopython": True, "_nrt": False}
    cpu_target.options.parse_as_flags(flags, options)
    flags.no_compile = True  # LLVM's part is ours
    return flags


@global_compiler_lock
def object_code(text: str, filename: str, entry: str) -> bytes:
    """Compile the module `text`, which defines `kernel(table, begin, end)`.

    The code exports it as the C function `entry`. Tracebacks name the file `filename`.
    """
    linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
    names: dict[str, Any] = {"__name__": f"minigrad_kernel_{entry}", "__file__": filename}
    exec(compile(text, filename, "exec"), names)
    library = _KernelCode(_CONTEXT.codegen(), entry)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", numba.NumbaWarning)
        compiled = compiler.compile_extra(
            cpu_target.typing_context, _CONTEXT, names["kernel"],
            _ARGUMENTS, types.void, _flags(), {}, library, cast("Any", _Passes),
        )  # fmt: skip
    _export(library, compiled.fndesc, entry)
    return library.object_code(entry)


def _export(library: _KernelCode, function: Any, entry: str) -> None:
    """Add a C function that calls a Numba function, which passes results and errors by pointer."""
    context = _CONTEXT
    convention = context.call_conv
    module = context.create_module(entry)
    kind = convention.get_function_type(function.restype, function.argtypes)
    callee = ir.Function(module, kind, function.llvm_func_name)
    word = ir.IntType(64)
    outer = ir.Function(module, ir.FunctionType(ir.VoidType(), [word] * 3), entry)
    builder = ir.IRBuilder(outer.append_basic_block())
    convention.call_function(builder, callee, function.restype, function.argtypes, outer.args)
    builder.ret_void()
    library.add_ir_module(module)


@cache
def _machine() -> Any:
    """This computer, as LLVM's target."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return _new_machine()


def _new_machine() -> Any:
    target = cast("Any", llvm.Target.from_triple(llvm.get_process_triple()))
    return target.create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=machine.features(),
        opt=3,
        reloc="static" if target.name.startswith("x86") else "default",  # as Numba has it
        codemodel="jitdefault",
        jit=True,
    )


@cache
def _engine() -> Any:
    _machine()
    return llvm.create_mcjit_compiler(llvm.parse_assembly(""), _new_machine())


def link(code: bytes, entry: str) -> int:
    """Load object code into this process, for good. The address of its function `entry`."""
    engine = _engine()
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return engine.get_function_address(entry)
