"""``python -m recipes <stage>``: one command per stage, in the order of the list below.

Every stage can be stopped at any time and started again; it goes on where it was. Everything it makes
is under ``~/.cache/speechssm/recipes`` (or ``$SPEECHSSM_CACHE/recipes``), one folder per stage.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Context:
    """What the command line said."""

    data: Path
    device: str
    threads: int
    config: dict[str, Any]
    hours: float
    minutes: float
    part: str
    settings: str
    schedule: str
    prompts: int


def _voices(c: Context) -> None:
    from . import voices

    voices.run(c.data, c.hours)


def _teach(c: Context) -> None:
    from . import teach

    teach.run(c.data, c.device)


def _phones(c: Context) -> None:
    from . import phones

    phones.run(c.data, c.threads)


def _same_text(c: Context) -> None:
    from .teachers import kokoro

    kokoro.run(c.data)


def _targets(c: Context) -> None:
    from . import targets

    targets.run(c.data, c.config)


def _tokenizer(c: Context) -> None:
    from . import tokenizer

    tokenizer.run(c.data, c.config, c.device)


def _judge_tokenizer(c: Context) -> None:
    from . import judge_tokenizer

    figures = judge_tokenizer.run(c.data, c.config)
    print(json.dumps(figures, indent=1))


def _tokens(c: Context) -> None:
    from . import tokens

    tokens.run(c.data, c.config, c.hours)


def _language(c: Context) -> None:
    from .language import train

    train.run(c.device, train.settings(c.settings), minutes=c.minutes)


def _judge_language(c: Context) -> None:
    from .language import judge, train

    print(json.dumps(judge.run(train.settings(c.settings)), indent=1))


def _compare_language(c: Context) -> None:
    from .language import baseline, train

    print(json.dumps(baseline.run(c.device, train.settings(c.settings)), indent=1))


def _keep(c: Context) -> None:
    from . import weights

    weights.keep(c.part)


def _listen(c: Context) -> None:
    from . import listen

    print(listen.run(c.data))


def _storages(c: Context) -> None:
    from . import storages

    storages.run(c.data, c.threads)


def _judge_system(c: Context) -> None:
    from . import system

    print(json.dumps(system.run(c.data, c.schedule, c.threads, c.prompts), indent=1))


def _voice(c: Context) -> None:
    from . import voice

    voice.ship()


STAGES: dict[str, tuple[str, Callable[[Context], None]]] = {
    "voices": ("speak story text with flite's voices (Debian package flite), --hours of it", _voices),
    "teach": ("Whisper-base block 4 features of all speech, at 25 Hz", _teach),
    "phones": ("forced alignment of all speech (needs pocketsphinx and faster-whisper)", _phones),
    "same-text": ("held-out sentences in held-out Kokoro voices (needs kokoro-onnx and npm)", _same_text),
    "targets": ("500 units from phones, neighbours and teacher features", _targets),
    "tokenizer": ("train the tokenizer", _tokenizer),
    "judge-tokenizer": ("measure the tokenizer on held-out speech; keeps the best", _judge_tokenizer),
    "tokens": ("tokenise the stories, spoken by flite, for the language model, --hours of it", _tokens),
    "language": ("train the Griffin language model on the tokens, at most --minutes", _language),
    "judge-language": ("nat per token below a Kneser-Ney 5-gram on held-out speech", _judge_language),
    "compare-language": ("a Transformer of equal size beside it, both briefly trained", _compare_language),
    "keep": ("copy the best weights of --part from the cache into recipes/trained", _keep),
    "listen": ("a page to hear the demo bundle by, on held-out readers", _listen),
    "storages": ("what each storage costs the language model on held-out speech", _storages),
    "judge-system": ("continue held-out prompts for minutes and judge every minute", _judge_system),
    "voice": ("the four parts as the demo bundle inside the package", _voice),
}


def main() -> None:
    """Run one stage."""
    stages = "\n".join(f"  {name:16} {about}" for name, (about, _) in STAGES.items())
    parser = argparse.ArgumentParser(
        "python -m recipes",
        description=f"stages:\n{stages}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="default: ../shared/data")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads, default 2")
    parser.add_argument("--config", type=Path, default=HERE / "tokenizer.json")
    parser.add_argument("--hours", type=float, default=3.0, help="speech to synthesise (voices, tokens)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop and save after (language)")
    parser.add_argument("--part", choices=("tokenizer", "codec", "language", "acoustic"), default="codec")
    parser.add_argument(
        "--settings", choices=("settings", "small"), default="settings", help="language model"
    )
    parser.add_argument("--schedule", choices=("default", "fast"), default="default", help="(judge-system)")
    parser.add_argument("--prompts", type=int, default=20, help="held-out prompts (judge-system)")
    given = parser.parse_args()
    import torch

    torch.set_num_threads(given.threads)
    device = given.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    config = json.loads(given.config.read_text(encoding="utf-8"))
    STAGES[given.stage][1](
        Context(
            data=given.data,
            device=device,
            threads=given.threads,
            config=config,
            hours=given.hours,
            minutes=given.minutes,
            part=given.part,
            settings=given.settings,
            schedule=given.schedule,
            prompts=given.prompts,
        )
    )


if __name__ == "__main__":
    main()
