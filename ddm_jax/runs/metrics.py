"""The metrics of a run as columns: `run.metrics["loss"]`, `run.metrics.curve("nll")`."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddm_jax.errors import UserError

_SHOWN = 10  # lines of a printed table


@dataclass(frozen=True, repr=False)
class Metrics:
    """The lines of metrics.jsonl, oldest first; prints as a table of the newest.

    Attributes:
      columns: field -> float64[n], NaN on the lines that do not have it. "step" is in all lines;
        "loss" and speed are in those of training, "nll" and what follows from it in those of
        validation (docs/evaluation.md).
    """

    columns: Mapping[str, np.ndarray]

    def __getitem__(self, name: str) -> np.ndarray:
        """The column `name`.

        Raises:
          UserError: no line has this field.
        """
        if name not in self.columns:
            raise UserError(
                f"The metrics have no field {name!r}: choose one of {', '.join(self.columns)}."
            )
        return self.columns[name]

    def __len__(self) -> int:
        return max(map(len, self.columns.values()), default=0)

    def curve(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps int64[m], values float64[m]) of the lines that have the field, as to plot it.

        Raises:
          UserError: no line has this field.
        """
        values = self[name]
        there = ~np.isnan(values)
        return self["step"][there].astype(np.int64), values[there]

    def __repr__(self) -> str:
        header, rows = self._table()
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        lines = [
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            for row in (header, *rows)
        ]
        return "\n".join([*lines, self._size()])

    def _repr_html_(self) -> str:
        header, rows = self._table()
        head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
        body = "".join(
            f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows
        )
        return f"<table><tr>{head}</tr>{body}</table><p>{self._size()}</p>"

    def _table(self) -> tuple[list[str], list[list[str]]]:
        """The names, and the newest lines."""
        newest = {name: values[-_SHOWN:] for name, values in self.columns.items()}
        newest = {name: values for name, values in newest.items() if not np.isnan(values).all()}
        rows = zip(*newest.values(), strict=True)
        return list(newest), [["" if np.isnan(x) else f"{x:.6g}" for x in row] for row in rows]

    def _size(self) -> str:
        return f"{len(self)} lines, fields: {', '.join(self.columns) or 'none'}"


def to_metrics(records: Sequence[Mapping[str, Any]]) -> Metrics:
    """The columns of the records of metrics.jsonl (`runs.files.read_metrics`)."""
    names = dict.fromkeys(name for record in records for name in record)
    return Metrics(
        {name: np.array([_number(record.get(name)) for record in records]) for name in names}
    )


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")
