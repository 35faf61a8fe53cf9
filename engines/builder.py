"""``speechssm build``: every graph of a bundle as an engine in a cache folder, and an index that names them.

A build runs in a process of its own, under a lock, and appears whole or not at all; an engine whose key
is already there is not built again.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import speechssm
from speechssm.bundle import Bundle
from speechssm.bundle.onnx_check import check_graph
from speechssm.bundle.reader import sha256
from speechssm.errors import EngineError

from .cache import RECORD, Verdict, build_once, find, read_record
from .index import BuildSettings, EngineIndex, IndexEntry, read_index, write_index
from .key import EngineKey, Flavour
from .ort import import_onnxruntime
from .prepare import MODEL, PREPARATION, prepare
from .profiles import graph_profile, input_shapes, shape_values
from .vendor import MODULES, Progress, Vendor, find_vendor, run_build

RECURRENT_GRAPHS = ("lm_step", "lm_chunk")
"""Graphs with the operators that a plugin brings."""
RTX_CAPABILITIES = ("sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
"""What TensorRT-RTX 1.7 compiles for ahead of time. Hopper (sm_90) is not among them."""


@dataclass(frozen=True)
class Environment:
    """What is installed here, as far as an engine's identity depends on it."""

    version: str
    """Of TensorRT or ONNX Runtime."""
    plugin: Path | None
    """The library with our operators, as the caller found it; never taken from a bundle."""
    architecture: str | None
    """Of the GPU at hand, None without one."""
    vendor: Vendor | None = None
    _digests: dict[Path, str] = field(default_factory=dict)

    @property
    def plugin_digest(self) -> str | None:
        """sha256 of the plugin library."""
        if self.plugin is None:
            return None
        if self.plugin not in self._digests:
            self._digests[self.plugin] = sha256(self.plugin)
        return self._digests[self.plugin]


@dataclass(frozen=True)
class BuiltGraph:
    """Outcome for one graph."""

    graph: str
    engine: Path
    size_bytes: int
    layers: dict[str, int]
    seconds: float
    """0 when an engine that was there is used again."""


def find_environment(flavour: Flavour, plugin: Path | None) -> Environment:
    """What is installed here for ``flavour``. Raises EngineError when its package is missing."""
    from .device import device_architecture

    if flavour in MODULES:
        vendor = find_vendor(flavour)
        return Environment(vendor.version, plugin, device_architecture(), vendor)
    return Environment(import_onnxruntime().__version__, plugin, device_architecture())


def uses_plugin(bundle: Bundle, graph: str, settings: BuildSettings) -> bool:
    """Whether the engine of ``graph`` has the recurrence, and attention exported as an operator, as nodes of ours."""
    recurrent = "recurrent" in bundle.manifest.lm.shape.blocks
    return settings.plugin and recurrent and graph in RECURRENT_GRAPHS


def engine_key(bundle: Bundle, graph: str, settings: BuildSettings, here: Environment) -> EngineKey:
    """Identity of the engine of ``graph``, built here as ``settings`` say."""
    files, entry = bundle.manifest.files, bundle.manifest.graphs[graph]
    plugin = uses_plugin(bundle, graph, settings)
    return EngineKey(
        graph=graph,
        graph_digest=files[entry.file].sha256,
        weight_digests=tuple(files[name].sha256 for name in entry.weights),
        flavour=settings.engine,
        flavour_version=here.version,
        plugin_digest=here.plugin_digest if plugin else None,
        architecture=_architecture(settings, here),
        precision=settings.precision,
        profiles=graph_profile(bundle.manifest, graph, settings.profiles),
        options={
            "preparation": PREPARATION,
            "plugin": str(int(plugin)),
            "aliased": str(int(settings.aliased and plugin and graph == "lm_step")),
            "tf32": str(int(settings.tf32)),
        },
    )


def _architecture(settings: BuildSettings, here: Environment) -> str:
    if settings.engine == "onnxruntime-cuda":
        return "any"
    if settings.engine == "tensorrt-rtx":
        return "+".join(settings.architectures) or "portable"
    return here.architecture or "none"


def build_engines(
    bundle: Bundle,
    settings: BuildSettings,
    folder: Path,
    here: Environment,
    *,
    graphs: Sequence[str] = (),
    progress: Callable[[str], Progress] | None = None,
) -> Iterator[BuiltGraph]:
    """Build the engines of ``graphs`` (all of them when empty) into ``folder``; yields each when it is there.

    ``progress(graph)`` gives the listener of that graph's build. Raises EngineError when something is
    missing, is not what this engine takes, or the builder refuses or crashes; what was finished before
    stays, and the index is written once all are there.
    """
    _check(bundle, settings, here)
    chosen = tuple(graphs) or tuple(bundle.manifest.graphs)
    entries: dict[str, IndexEntry] = {}
    for graph in chosen:
        check_graph(
            *bundle.graph(graph)
        )  # a name or a graph that will not do is refused before anything is built
    for graph in chosen:
        key = engine_key(bundle, graph, settings, here)
        spent: list[float] = []
        listener = progress(graph) if progress is not None else None
        engine = build_once(
            folder,
            key,
            _builder(bundle, graph, settings, here, folder, listener, spent),
            speechssm.__version__,
        )
        record, problem = read_record(engine.parent)
        if record is None:
            raise EngineError(problem)
        entries[graph] = IndexEntry(folder=key.digest(), record_sha256=sha256(engine.parent / RECORD))
        yield BuiltGraph(graph, engine, record.size_bytes, record.layers, spent[0] if spent else 0.0)
    name, digest = bundle.manifest.name, bundle.digest
    others = _others(folder, digest, settings)
    write_index(
        folder, EngineIndex(bundle=name, bundle_digest=digest, settings=settings, graphs=others | entries)
    )


def _others(folder: Path, digest: str, settings: BuildSettings) -> dict[str, IndexEntry]:
    """Graphs that an earlier build of this bundle with these settings put into the index."""
    try:
        there = read_index(folder)
    except EngineError:
        return {}
    return there.graphs if (there.bundle_digest, there.settings) == (digest, settings) else {}


def _builder(
    bundle: Bundle,
    graph: str,
    settings: BuildSettings,
    here: Environment,
    cache: Path,
    progress: Progress | None,
    spent: list[float],
) -> Callable[[Path], dict[str, int]]:
    plugin = uses_plugin(bundle, graph, settings)
    aliased = settings.aliased and plugin and graph == "lm_step"

    def onnxruntime(work: Path) -> dict[str, int]:
        started = time.monotonic()
        prepare(bundle, graph, work, precision=settings.precision, plugin=False, foreign=True)
        spent.append(time.monotonic() - started)
        return _operators(work / MODEL)

    def tensorrt(work: Path) -> dict[str, int]:
        assert here.vendor is not None
        with tempfile.TemporaryDirectory(prefix=".prepared.", dir=cache) as prepared:
            made = prepare(
                bundle, graph, Path(prepared), precision=settings.precision, plugin=plugin, aliased=aliased
            )
            entry, ranges = (
                bundle.manifest.graphs[graph],
                graph_profile(bundle.manifest, graph, settings.profiles),
            )
            version = here.version.replace("/", "_")
            job = {
                "module": MODULES[settings.engine][0],
                "model": str(made.path),
                "plugin": str(here.plugin) if plugin else "",
                "tf32": settings.tf32,
                "aliased": aliased,
                "capabilities": [name.replace("sm_", "SM") for name in settings.architectures],
                "shapes": input_shapes(entry, ranges),
                "values": shape_values(bundle.manifest, graph),
                "timing_cache": str(cache / f".timing-{settings.engine}-{version}.cache"),
                "output": str(work / "engine.bin"),
            }
            built = run_build(here.vendor, job, f"graph {graph}", progress)
        found = built.layers.get("PLUGIN_V3", 0)
        if found != made.plugin_nodes:
            raise EngineError(
                f"{settings.engine} took {found} of {made.plugin_nodes} nodes of graph {graph} for the plugin's: its "
                f"layers are {', '.join(built.layers)}"
            )
        spent.append(built.seconds)
        return built.layers

    return onnxruntime if settings.engine == "onnxruntime-cuda" else tensorrt


def _operators(path: Path) -> dict[str, int]:
    import onnx

    model = onnx.load(path, load_external_data=False)
    return dict(Counter(node.op_type for node in model.graph.node).most_common())


def _check(bundle: Bundle, settings: BuildSettings, here: Environment) -> None:
    if settings.engine == "tensorrt" and here.architecture is None:
        raise EngineError(
            "TensorRT builds for the GPU at hand, and there is none: build where the engine is to run, or use "
            "--engine tensorrt-rtx, which builds ahead of time"
        )
    if settings.architectures and settings.engine != "tensorrt-rtx":
        raise EngineError(f"--arch belongs to --engine tensorrt-rtx: {settings.engine} knows its GPU itself")
    unknown = [name for name in settings.architectures if name not in RTX_CAPABILITIES]
    if unknown:
        raise EngineError(
            f"TensorRT-RTX does not compile for {unknown[0]}: choose among {', '.join(RTX_CAPABILITIES)}, or leave "
            "--arch out for an engine that is finished on the GPU it meets"
        )
    wanted = [g for g in RECURRENT_GRAPHS if uses_plugin(bundle, g, settings)]
    if wanted and here.plugin is None and settings.engine != "onnxruntime-cuda":
        raise EngineError(
            f"graph {wanted[0]} needs the TensorRT plugin, which is not built: run 'speechssm ext headers' and "
            "'speechssm ext build tensorrt', or build with standard operators: --no-plugin"
        )
    if wanted and here.plugin is not None and not here.plugin.is_file():
        raise EngineError(
            f"there is no plugin library at {here.plugin}: run 'speechssm ext build tensorrt', or give --plugin "
            "another path"
        )
    if settings.aliased and (not wanted or settings.engine == "onnxruntime-cuda"):
        raise EngineError(
            "state in place needs the TensorRT plugin and a recurrent model: leave --aliased out"
        )


def find_engine(bundle: Bundle, graph: str, index: EngineIndex, folder: Path, here: Environment) -> Verdict:
    """The engine of ``graph`` that ``index`` names, if it may be used here, or why not."""
    entry = index.graphs.get(graph)
    if entry is None:
        return Verdict(None, (f"no engine of graph {graph} was built in {folder}",))
    record = folder / entry.folder / RECORD
    if not record.is_file() or record.is_symlink() or sha256(record) != entry.record_sha256:
        return Verdict(None, (f"{record} is missing or is not the one that engines.json names",))
    verdict = find(folder, engine_key(bundle, graph, index.settings, here))
    if verdict.engine is not None and not _runs_on(index.settings, here):
        built = "+".join(index.settings.architectures) or "sm_80 and later"
        return Verdict(None, (f"it was built for {built}, and this GPU is {here.architecture}",))
    return verdict


def _runs_on(settings: BuildSettings, here: Environment) -> bool:
    """Whether a TensorRT-RTX engine takes the GPU at hand; without one there is nothing to tell."""
    if settings.engine != "tensorrt-rtx" or here.architecture is None:
        return True
    if settings.architectures:
        return here.architecture in settings.architectures
    return int(here.architecture.removeprefix("sm_")) >= 80
