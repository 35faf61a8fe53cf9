"""What a bundle holds, for people and for scripts."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from speechssm.bundle import Bundle, state_bytes, tensors
from speechssm.errors import EngineError

Report = dict[str, Any]


def inspect_bundle(bundle: Bundle) -> Report:
    """Graphs with operators, parameters and bytes of each part, state bytes of one session.

    Raises EngineError when the onnx package, which reads the operators, is missing.
    """
    manifest = bundle.manifest
    parts = {name: _part(bundle.folder / name) for name in manifest.files if name.endswith(".safetensors")}
    lm = manifest.graphs["lm_step"].state
    codec = manifest.graphs["codec_decode"].state if "codec_decode" in manifest.graphs else ()
    return {
        "name": manifest.name,
        "about": manifest.about,
        "seeded": manifest.seeded,
        "exporter": manifest.exporter,
        "digest": bundle.digest,
        "bytes": sum(entry.size_bytes for entry in manifest.files.values()),
        "weights": parts,
        "parameters": sum(part["parameters"] for part in parts.values()),
        "graphs": {name: _graph(bundle, name) for name in manifest.graphs},
        "state_bytes_per_session": {"lm": state_bytes(lm), "codec": state_bytes(codec)},
        "vocab": manifest.lm.shape.vocab,
        "window_tokens": manifest.windows.window_tokens,
        "licences": list(manifest.licences),
    }


def _part(path: Path) -> Report:
    entries = tensors.read_header(path)
    return {
        "tensors": len(entries),
        "parameters": sum(math.prod(e.shape) for e in entries.values()),
        "bytes": path.stat().st_size,
        "types": sorted({e.dtype for e in entries.values()}),
    }


def _graph(bundle: Bundle, name: str) -> Report:
    try:
        import onnx
    except ImportError as error:
        raise EngineError("counting operators needs the onnx package: run 'pip install onnx'") from error
    path, entry = bundle.graph(name)
    graph = onnx.load(path, load_external_data=False).graph
    counts: Counter[str] = Counter()
    stack = [graph]
    while stack:
        for node in stack.pop().node:
            counts[f"{node.domain}::{node.op_type}" if node.domain else node.op_type] += 1
            stack += [a.g for a in node.attribute if a.HasField("g")]
    return {
        "file": entry.file,
        "bytes": path.stat().st_size,
        "nodes": sum(counts.values()),
        "operators": dict(counts.most_common()),
        "inputs": {v.name: [v.dtype, list(v.axes)] for v in entry.inputs if not v.name.startswith("in_")},
        "outputs": {v.name: [v.dtype, list(v.axes)] for v in entry.outputs if not v.name.startswith("out_")},
        "state_tensors": len(entry.state),
    }


def render(report: Report) -> str:
    """The report as text."""
    state = report["state_bytes_per_session"]
    lines = [
        f"{report['name']}: {report['about']}",
        f"  {report['parameters'] / 1e6:.2f} M parameters, {report['bytes'] / 1e6:.1f} MB, "
        f"exporter {report['exporter']}",
        f"  state of one session: {state['lm'] / 1024:.1f} KiB language model, {state['codec'] / 1024:.1f} KiB codec",
        "",
        f"  {'weights':<24}{'tensors':>8}{'parameters':>14}{'MB':>8}  types",
    ]
    for name, part in report["weights"].items():
        lines.append(
            f"  {name:<24}{part['tensors']:>8}{part['parameters']:>14,}{part['bytes'] / 1e6:>8.2f}  "
            f"{', '.join(part['types'])}"
        )
    lines += ["", f"  {'graph':<16}{'nodes':>6}{'KB':>8}  most frequent operators"]
    for name, graph in report["graphs"].items():
        top = ", ".join(f"{op} {n}" for op, n in list(graph["operators"].items())[:5])
        lines.append(f"  {name:<16}{graph['nodes']:>6}{graph['bytes'] / 1e3:>8.1f}  {top}")
    return "\n".join(lines)
