"""What a study keeps of its results: the fit, with the hash of what it was made from.

Fits are arrays and plain values; nothing is pickled.
"""

import hashlib
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import polars as pl

from mixlaw import __version__
from mixlaw.errors import FitError
from mixlaw.files import write_atomic
from mixlaw.fit import FitResult, TargetStatus
from mixlaw.laws.base import MixingLaw
from mixlaw.observations import LossTable
from mixlaw.selection import LawChoice, read_choice

_TABLE_ARRAYS = ("r_RM", "y_RT", "standard_error_RT")
_FIT_ARRAYS = (
    "theta_TP",
    "theta_loo_RTP",
    "theta_draws_BTP",
    "scale_T",
    "replicate_NT",
    "level_shift_T",
)


def table_hash(runs: pl.DataFrame, observations: pl.DataFrame) -> str:
    """Returns a hash of both tables, whatever the order of their rows."""
    digest = hashlib.sha256()
    digest.update(runs.sort("run_id").write_csv().encode())
    digest.update(observations.sort("run_id", "step", "target").write_csv().encode())
    return digest.hexdigest()[:16]


def text_hash(text: str) -> str:
    """Returns a hash of what decides a result beside the tables: a law, an objective."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def save_fit(fit: FitResult, folder: Path, *, key: str) -> Path:
    """Writes a fit as arrays (`fit.npz`) and as text (`fit.json`); returns the latter's path."""
    folder.mkdir(parents=True, exist_ok=True)
    table = fit.table
    meta = {
        "key": key,
        "law": fit.law.name,
        "replicate_freedom": fit.replicate_freedom,
        "seed_factor": fit.seed_factor,
        "notes": fit.notes,
        "status": [asdict(status) for status in fit.status],
        "table": {
            "run_ids": table.run_ids,
            "mixture_ids": table.mixture_ids,
            "seeds": table.seeds,
            "domains": table.domains,
            "targets": table.targets,
            "step": table.step,
            "tokens": table.tokens,
            "unit": table.unit,
        },
    }
    buffer = io.BytesIO()
    np.savez(
        buffer,
        meta=np.array(json.dumps(meta)),
        **{name: getattr(table, name) for name in _TABLE_ARRAYS},
        **{name: getattr(fit, name) for name in _FIT_ARRAYS},
    )
    write_atomic(folder / "fit.npz", buffer.getvalue())
    return save_json(folder / "fit.json", fit.to_json(), made_from=key)


def load_fit(folder: Path, law: MixingLaw, *, key: str) -> FitResult | None:
    """Returns the kept fit, or None when there is none that was made from the same things."""
    try:
        with np.load(folder / "fit.npz", allow_pickle=False) as arrays:
            meta: dict[str, Any] = json.loads(str(arrays["meta"]))
            values = {name: arrays[name] for name in (*_TABLE_ARRAYS, *_FIT_ARRAYS)}
    except (OSError, EOFError, ValueError, KeyError, BadZipFile):
        return None  # missing or damaged: it is made again
    if meta["key"] != key or meta["law"] != law.name:
        return None
    plain = meta["table"]
    for name in ("run_ids", "mixture_ids", "seeds", "domains", "targets"):
        plain[name] = tuple(plain[name])
    statuses: list[dict[str, Any]] = meta["status"]
    for status in statuses:
        status["at_bound"] = tuple(status["at_bound"])
    return FitResult(
        law=law,
        table=LossTable(**plain, **{name: values[name] for name in _TABLE_ARRAYS}),
        **{name: values[name] for name in _FIT_ARRAYS},
        replicate_freedom=meta["replicate_freedom"],
        seed_factor=meta["seed_factor"],
        notes=tuple(meta["notes"]),
        status=tuple(TargetStatus(**status) for status in statuses),
    )


def save_choice(choice: LawChoice, folder: Path, *, key: str) -> Path:
    """Writes which law was chosen and why (`choice.json`); returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    return save_json(folder / "choice.json", choice.to_json(), made_from=key)


def load_choice(folder: Path, *, key: str) -> LawChoice | None:
    """Returns the kept choice, or None when there is none that was made from the same things."""
    try:
        values = json.loads((folder / "choice.json").read_text(encoding="utf-8"))
        return read_choice(values) if values["made_from"] == key else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, FitError):
        return None  # missing or damaged: it is made again


def save_json(path: Path, values: dict[str, Any], *, made_from: str) -> Path:
    """Writes a result with the hash of what it was made from and the version that made it."""
    stamped = {"version": __version__, "made_from": made_from, **values}
    return write_atomic(path, json.dumps(stamped, indent=1, ensure_ascii=False) + "\n")
