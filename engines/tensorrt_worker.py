"""Builds one engine with TensorRT or TensorRT-RTX, in a process of its own.

    python tensorrt_worker.py < JOB.json      one JSON object a line on standard output
    python tensorrt_worker.py --probe MODULE  its version and where its libraries lie

A vendor library that crashes, or prints, does so here and not in the caller. Nothing of speechssm is
imported, so the Python that runs this needs the vendor's package and nothing else. Both modules have the
same interface as far as it is used here; compute capabilities are TensorRT-RTX's only.
"""

import sys

del sys.path[0]  # this folder has modules named like the standard library's

import collections  # noqa: E402
import contextlib  # noqa: E402
import importlib  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import time  # noqa: E402
from typing import Any  # noqa: E402

Job = dict[str, Any]


def main() -> int:
    """Exit code 0 when the engine is written, 1 when the builder refused; messages say why."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the vendor's libraries print must not mix with our lines

    def say(**event: Any) -> None:
        print(json.dumps(event), file=out, flush=True)

    if sys.argv[1:2] == ["--probe"]:
        return probe(sys.argv[2], say)
    job = json.load(sys.stdin)
    return build(importlib.import_module(job["module"]), job, say)


def probe(name: str, say: Any) -> int:
    """Version, folder of the libraries, and whether ONNX models can be parsed."""
    module = importlib.import_module(name)
    libraries = ""
    with contextlib.suppress(ImportError):
        libraries = next(iter(importlib.import_module(f"{name}_libs").__path__))
    say(event="probe", version=module.__version__, libraries=libraries, parser=hasattr(module, "OnnxParser"))
    return 0


def build(trt: Any, job: Job, say: Any) -> int:
    """Parse, configure, build, write. Every refusal is a message event of level error."""
    logger = make_logger(trt, say)
    builder = trt.Builder(logger)
    if job["plugin"]:
        # False (or null) where the file is no plugin library; some versions raise instead.
        before = len(builder.get_plugin_registry().all_creators)
        builder.get_plugin_registry().load_library(job["plugin"])
        if len(builder.get_plugin_registry().all_creators) == before:
            say(event="message", level="error", text=f"{job['plugin']} brings no plugin")
            return 1
    network = builder.create_network(network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    say(event="progress", phase="parse", step=0, steps=1)
    started = time.monotonic()
    if not parser.parse_from_file(job["model"]):
        for i in range(parser.num_errors):
            error = parser.get_error(i)
            say(event="message", level="error", text=f"{error.node_name() or 'model'}: {error.desc()}")
        return 1
    layers = collections.Counter(network.get_layer(i).type.name for i in range(network.num_layers))
    config = builder.create_builder_config()
    if hasattr(trt.BuilderFlag, "TF32") and not job["tf32"]:
        config.clear_flag(trt.BuilderFlag.TF32)
    if job["aliased"]:
        config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
    if job["capabilities"]:
        config.num_compute_capabilities = len(job["capabilities"])
        for i, name in enumerate(job["capabilities"]):
            config.set_compute_capability(getattr(trt.ComputeCapability, name), i)
    profile = builder.create_optimization_profile()
    for name, (low, likely, high) in job["shapes"].items():
        profile.set_shape(name, low, likely, high)
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        if tensor.is_shape_tensor and tensor.name in job["values"]:
            low, likely, high = job["values"][tensor.name]
            profile.set_shape_input(tensor.name, [low], [likely], [high])
    if not profile:
        say(event="message", level="error", text="the profile is not valid for this network")
        return 1
    config.add_optimization_profile(profile)
    cache = use_timing_cache(config, job["timing_cache"])
    config.progress_monitor = make_monitor(trt, say)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        say(event="message", level="error", text="the builder gave no engine")
        return 1
    with open(job["output"], "wb") as file:
        file.write(memoryview(engine))
    if cache is not None:
        keep_timing_cache(config, job["timing_cache"])
    say(
        event="done",
        bytes=engine.nbytes,
        layers=dict(layers.most_common()),
        seconds=time.monotonic() - started,
        timing_cache=cache is not None,
    )
    return 0


def network_flags(trt: Any) -> int:
    """Strongly typed: TensorRT 10 has to be told, TensorRT 11 and TensorRT-RTX know nothing else."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def use_timing_cache(config: Any, path: str | None) -> Any:
    """Hand the builder what earlier builds measured; None where this vendor keeps no such cache."""
    if not path:
        return None
    content = b""
    if os.path.exists(path):
        with open(path, "rb") as file:
            content = file.read()
    try:
        cache = config.create_timing_cache(content)
        if cache is None and content:  # of another version: start anew
            cache = config.create_timing_cache(b"")
        return cache if cache is not None and config.set_timing_cache(cache, False) else None
    except Exception:
        return None


def keep_timing_cache(config: Any, path: str) -> None:
    """Write the cache whole or not at all."""
    content = config.get_timing_cache().serialize()
    if content is None:
        return
    with open(f"{path}.{os.getpid()}.partial", "wb") as file:
        file.write(memoryview(content))
    os.replace(file.name, path)


def make_logger(trt: Any, say: Any) -> Any:
    """Warnings and errors as events, and the lines that name a plugin."""

    class Messages(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                say(event="message", level="error", text=text)
            elif "lugin" in text and severity <= trt.ILogger.Severity.INFO:
                say(event="message", level="plugin", text=text)

    return Messages()


def make_monitor(trt: Any, say: Any) -> Any:
    """Phases of the build as progress events, not more than some a second."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.last = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            now = time.monotonic()
            if now - self.last > 0.2:
                self.last = now
                say(event="progress", phase=phase_name, step=step + 1, steps=self.steps.get(phase_name, 0))
            return True

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

    return Monitor()


if __name__ == "__main__":
    sys.exit(main())
