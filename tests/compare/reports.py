"""Reports of runs made by hand, with everything that a page can show."""

import json

from ddm_jax.compare.report import make_report
from ddm_jax.compare.results import read_result
from ddm_jax.compare.summary import label_runs
from tests.compare.made import make_run

NASTY = "</article></script><script>document.title = 'broken'</script><img src=//evil/x.png> &amp;"
PROGRAM = {
    "compile_s": 3.25,
    "memory_bytes": {"peak": 3 * 2**20},
    "collectives": {"all-reduce": 2e6, "all-gather": 1e6},
}
SCORES = {
    "entropy": 2.5, "distinct_1": 0.5, "distinct_2": 0.75, "repeated_4grams": 0.1,
    "perplexity": 123.4,
}  # fmt: skip


def full_report(folder):
    """Three objectives, two layouts, two seeds; one failed, one unfinished; texts of two."""
    folders = []
    for i, objective in enumerate(("ar", "gidd", "mlm")):
        for layout in ("dp", "tp"):
            for seed in (0, 1):
                made = make_run(
                    folder / f"{objective}-{layout}-{seed}", objective, layout, seed,
                    losses=(5.0 + i, 4.0 + i, 3.0 + i + 1e-5 * (layout == "tp")),
                    nll=(4.0 + i, 3.5 + i, 3.0 + i + 0.1 * seed), step_s=2.0 * (i + 4),
                )  # fmt: skip
                (made / "program.json").write_text(json.dumps(PROGRAM))
                folders.append(made)
    cell = {"objective": "ar", "layout": "fsdp", "seed": 0, "command": f"python {NASTY}"}
    for name, ended in (("failed", {"reason": f"It says {NASTY}"}), ("waiting", {})):
        (folder / name).mkdir()
        (folder / name / "cell.json").write_text(json.dumps(cell | ended))
        folders.append(folder / name)
    texts = {
        "judge": f"a judge {NASTY}",
        "num": 4,
        "rows": [
            {"label": label, "sampler": "ancestral", "steps": nfe, "nfe": float(nfe),
             "seconds": 0.5, "scores": SCORES, "texts": [NASTY, "word " * 40, "x" * 300]}
            for label in ("ar", "gidd")
            for nfe in (4, 16)
        ],
        "real": {"scores": SCORES, "texts": ["real text"]},
        "failed": {"mlm": f"cannot {NASTY}"},
    }  # fmt: skip
    return make_report(label_runs(map_runs(folders)), ["dp"], texts, f"python {NASTY}")


def map_runs(folders):
    """The runs of some folders."""
    return [read_result(folder) for folder in folders]
