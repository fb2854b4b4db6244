"""`ddplug run`: an unedited upstream script, run as a program with our lines inserted while it is read.

Nothing is written to the checkout. For the time of the run the script has its own `__main__`, `sys.argv`, search path
and modules; afterwards they are restored.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import linecache
import sys
import threading
import traceback
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ddplug.errors import DDPlugError, HostError
from ddplug.hosting.checkout import HostSpec
from ddplug.hosting.layer import require_rounds, save_all
from ddplug.utils.output import say

INTERRUPTED = 130


def run(spec: HostSpec, repo: Path, arguments: Sequence[str], *, must: bool) -> None:
    """Run the host's script with the patch in memory and `arguments` on its command line.

    Args:
        spec: the host.
        repo: its checkout, which is not changed.
        arguments: everything after the script's name, including our `--cmi_...` options.
        must: True if it is an error that the layer never acts.

    Raises:
        HostError: not the right checkout, a package is missing, or the layer never acted.
        HostError: the script failed; its own traceback is printed first.
        SystemExit: the script ended itself with an error, such as an unknown option, or was interrupted.
    """
    sources = {(repo / name).resolve(): Source(text) for name, text in spec.patched(repo).items()}
    require_packages(spec)
    script = (repo / spec.script).resolve()
    with require_rounds(f"{spec.name} ({script.name})", must):
        execute(
            script, arguments, sources, path=[(repo / folder).resolve() for folder in spec.path],
            redirect_cuda=spec.redirect_cuda, numpy_aliases=spec.numpy_aliases,
        )  # fmt: skip


def require_packages(spec: HostSpec) -> None:
    """Raise `HostError` if a package of the host is missing."""
    missing = [name for name in spec.packages if not _installed(name)]
    if missing:
        raise HostError(f"{spec.name} needs {', '.join(missing)}; install with: pip install {' '.join(missing)}")


def _installed(package: str) -> bool:
    """Return True for a package that pip knows by this name, and for a module of this name, of whatever origin."""
    return importlib.util.find_spec(package) is not None or any(importlib.metadata.Distribution.discover(name=package))


@dataclass(frozen=True)
class Source:
    """Replacement of a file: a text, or a syntax tree, which keeps the file's own line numbers."""

    code: bytes | ast.Module
    names: Mapping[str, object] = field(default_factory=dict)
    """Names that the code knows besides Python's own, during the run."""


def execute(
    script: Path,
    arguments: Sequence[str],
    sources: Mapping[Path, Source],
    *,
    path: Sequence[Path] = (),
    redirect_cuda: bool = False,
    numpy_aliases: Sequence[str] = (),
) -> None:
    """Run `script`, an absolute path, as a program, with some files replaced while they are read.

    Args:
        script: the program.
        arguments: its command line.
        sources: replacements of the script and of imported files, by absolute path.
        path: folders on the search path, after the script's own.
        redirect_cuda: True to put tensors for "cuda" on the CPU if there is no CUDA device.
        numpy_aliases: names that NumPy once had for builtins.

    Raises:
        HostError: the script failed; its own traceback is printed first.
        SystemExit: the script ended itself with an error, such as an unknown option, or was interrupted.
    """
    source = sources.get(script) or Source(script.read_bytes())
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=str(script), __builtins__=builtins, __package__=_package(script, path))
    with ExitStack() as stack:
        stack.enter_context(_surroundings(main, [str(script), *arguments], [script.parent, *path]))
        stack.enter_context(_patched_imports(sources))
        stack.enter_context(old_names(numpy_aliases))
        stack.enter_context(_spawned_here())
        # Not cuda.is_available(), which would initialise CUDA before the host has chosen its devices.
        if redirect_cuda and torch.cuda.device_count() == 0:
            stack.enter_context(CudaOnCpu())
        try:
            exec(compile(source.code, str(script), "exec", dont_inherit=True), main.__dict__)
        except SystemExit as end:
            if end.code not in (None, 0):
                raise
        except DDPlugError:
            raise
        except KeyboardInterrupt:
            saved = " and ".join(map(str, save_all()))
            where = f"the history of CMI so far is in {saved}" if saved else "CMI had not acted, so nothing is saved"
            say(f"ddplug: interrupted; {where}.", error=True)
            sys.exit(INTERRUPTED)
        except Exception as error:
            traceback.print_exc()
            raise HostError(f"{script.name} ended with {type(error).__name__}, see above: {error}") from error


def _package(script: Path, path: Sequence[Path]) -> str | None:
    """The package that `script` is a module of below one of the folders, as for `python -m`; None for a plain file."""
    if not (script.parent / "__init__.py").is_file():
        return None
    above = next((folder for folder in path if folder in script.parent.parents), None)
    return ".".join(script.parent.relative_to(above).parts) if above is not None else None


@contextmanager
def _surroundings(main: types.ModuleType, argv: list[str], folders: Sequence[Path]) -> Iterator[None]:
    """Give a script the modules, arguments and search path of a program in the block, and restore them after it."""
    saved = (sys.argv, sys.path[:], sys.modules["__main__"], sys.dont_write_bytecode)
    before = dict(sys.modules)
    for name in _shadowing(folders):
        del sys.modules[name]
    sys.argv, sys.dont_write_bytecode = argv, True
    sys.path[:0] = [str(folder) for folder in folders]
    sys.modules["__main__"] = main
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.argv, sys.path[:], sys.modules["__main__"], sys.dont_write_bytecode = saved
        for name in [name for name, module in sys.modules.items() if _within(module, folders)]:
            del sys.modules[name]
        sys.modules.update({name: module for name, module in before.items() if name not in sys.modules})


def _shadowing(folders: Sequence[Path]) -> list[str]:
    """Names of imported modules that would hide modules of the host."""
    own = {path.stem for folder in folders for path in folder.glob("*.py")}
    own |= {path.name for folder in folders for path in folder.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    return [
        name
        for name, module in sys.modules.items()
        if name.partition(".")[0] in own - {"__main__", *sys.builtin_module_names} and not _within(module, folders)
    ]


def _within(module: object, folders: Sequence[Path]) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and any(Path(file).is_relative_to(folder) for folder in folders)


@contextmanager
def _patched_imports(sources: Mapping[Path, Source]) -> Iterator[None]:
    """Import the replacements in `sources` in the block, without cached bytecode, and show them in tracebacks."""
    finder = _Finder(sources)
    sys.meta_path.insert(0, finder)
    names = {name: value for source in sources.values() for name, value in source.names.items()}
    vars(builtins).update(names)  # not the module's: runpy runs the code in one of its own
    texts = {path: source.code for path, source in sources.items() if isinstance(source.code, bytes)}
    for path, text in texts.items():
        lines = text.decode("utf-8", errors="replace").splitlines(keepends=True)
        linecache.cache[str(path)] = (len(text), None, lines, str(path))
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in names:
            vars(builtins).pop(name, None)
        for path in texts:
            linecache.cache.pop(str(path), None)


class _Finder(importlib.abc.MetaPathFinder):
    """Finder of the replaced files; others are left to the ordinary finder."""

    def __init__(self, sources: Mapping[Path, Source]) -> None:
        self._sources = sources

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        found = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if found is None or found.origin is None or not found.origin.endswith(".py"):
            return None
        source = self._sources.get(Path(found.origin).resolve())
        if source is None:
            return None
        return importlib.util.spec_from_file_location(
            fullname, found.origin, loader=_Loader(fullname, found.origin, source)
        )


class _Loader(importlib.machinery.SourceFileLoader):
    """Loader of a file's replacement."""

    def __init__(self, fullname: str, path: str, source: Source) -> None:
        super().__init__(fullname, path)
        self._source = source

    def get_code(self, fullname: str) -> types.CodeType:
        """The compiled replacement; caches are not used."""
        return compile(self._source.code, self.path, "exec", dont_inherit=True)

    def get_data(self, path: str) -> bytes:
        """The replacement's text, for `inspect`."""
        return self._source.code if isinstance(self._source.code, bytes) else super().get_data(path)


@contextmanager
def old_names(names: Sequence[str]) -> Iterator[None]:
    """Give NumPy its former names of builtins, such as `np.int`, in the block."""
    import numpy as np

    added = [name for name in names if name not in vars(np)]
    for name in added:
        setattr(np, name, getattr(builtins, name))
    try:
        yield
    finally:
        for name in added:
            delattr(np, name)


@contextmanager
def _spawned_here() -> Iterator[None]:
    """Run the function of `torch.multiprocessing.spawn` in this process, which has the layer, if it is for one only."""
    multiprocessing: Any = torch.multiprocessing
    spawn = multiprocessing.spawn

    def here(fn: Any, args: Any = (), nprocs: int = 1, join: bool = True, *more: Any, **options: Any) -> Any:
        if nprocs != 1 or not join:
            return spawn(fn, args, nprocs, join, *more, **options)
        return fn(0, *args)

    multiprocessing.spawn = here
    try:
        yield
    finally:
        multiprocessing.spawn = spawn


class _OnCpu(TorchFunctionMode):
    """Mode of one thread in which tensors for "cuda" are put on the CPU."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call `func` with every CUDA device replaced by the CPU."""
        if getattr(func, "__name__", "") == "cuda" and args and isinstance(args[0], torch.Tensor):
            return args[0]
        args = tuple(_on_cpu(arg) for arg in args)
        kwargs = {name: _on_cpu(value) for name, value in (kwargs or {}).items()}
        return func(*args, **kwargs)


class CudaOnCpu(_OnCpu):
    """Mode in which tensors for "cuda" are put on the CPU, for hosts that know no other device.

    It holds in the threads that are started meanwhile, and for `torch.load`, whose choice of a device a mode does not
    see. `torch.cuda.set_device` and `reset_peak_memory_stats` do nothing.
    """

    def __enter__(self) -> CudaOnCpu:
        """Replace `torch.load`, functions of `torch.cuda`, and the start of threads."""
        self._load, self._start = torch.load, threading.Thread.start
        self._cuda = torch.cuda.set_device, torch.cuda.memory.reset_peak_memory_stats
        torch.cuda.set_device = lambda device: None
        torch.cuda.memory.reset_peak_memory_stats = lambda device=None: None
        torch.load = lambda file, map_location=None, *args, **kwargs: self._load(file, "cpu", *args, **kwargs)
        threading.Thread.start = lambda thread: self._started(thread)  # type: ignore[method-assign, assignment]
        return super().__enter__()  # type: ignore[no-untyped-call, no-any-return]

    def __exit__(self, *ended: Any) -> None:
        """Restore all of them."""
        super().__exit__(*ended)  # type: ignore[no-untyped-call]
        torch.load = self._load
        torch.cuda.set_device, torch.cuda.memory.reset_peak_memory_stats = self._cuda
        threading.Thread.start = self._start  # type: ignore[method-assign]

    def _started(self, thread: threading.Thread) -> None:
        """Start `thread` in the mode."""
        run = thread.run

        def redirected() -> None:
            with _OnCpu():
                run()

        thread.run = redirected  # type: ignore[method-assign]
        self._start(thread)


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    if isinstance(value, str) and (value == "cuda" or value.startswith("cuda:")):
        return "cpu"
    return value
