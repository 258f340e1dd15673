"""Style sheet and script of the page: nothing is loaded from anywhere."""

STYLE = """
:root { color-scheme: light; --line: #ccc; --quiet: #555; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1rem; background: #fff; color: #111;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; border-top: 2px solid #111; padding-top: .5rem; }
h3 { font-size: 1rem; margin: 1rem 0 .25rem; }
p, ul { margin: .5rem 0; max-width: 46rem; }
.answer { font-size: 1.1rem; font-weight: 600; }
.quiet, figcaption { color: var(--quiet); font-size: .875rem; }
.problem { border: 2px solid #111; border-left-width: .6rem; padding: .5rem .75rem; margin: 1rem 0;
  overflow-wrap: anywhere; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr));
  gap: 1rem; margin: 1rem 0; }
.plots:has(> :only-child) { max-width: 33rem; }
figure { margin: 0; min-width: 0; }
svg { display: block; width: 100%; height: auto; }
.scroll { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: separate; border-spacing: 0; font-size: .875rem;
  font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .5rem; border-bottom: 1px solid var(--line);
  vertical-align: top; white-space: nowrap; }
th { vertical-align: bottom; border-bottom: 2px solid #111; padding: 0; }
th button { all: unset; box-sizing: border-box; display: block; width: 100%;
  cursor: pointer; padding: .3rem .5rem;
  font-weight: 600; text-align: inherit; }
th button:focus-visible { outline: 2px solid #0072B2; }
th button::after { content: " \\2195"; color: #888; }
th[aria-sort=ascending] button::after { content: " \\2191"; color: #111; }
th[aria-sort=descending] button::after { content: " \\2193"; color: #111; }
th.words, td.words { text-align: left; }
th:first-child, td:first-child {
  position: sticky; left: 0; background: #fff; }
td.long { white-space: pre-wrap; min-width: 16rem; overflow-wrap: anywhere; }
.texts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr));
  gap: .75rem; margin: 1rem 0; }
.texts article { border: 1px solid var(--line); padding: .5rem .75rem; min-width: 0; }
.texts h3 { margin-top: 0; }
blockquote { margin: .5rem 0; white-space: pre-wrap; overflow-wrap: anywhere;
  border-left: 3px solid var(--line); padding-left: .6rem; font-family: Georgia, serif; }
pre { overflow-x: auto; background: #f4f4f4; padding: .6rem; font-size: .8rem; margin: .5rem 0; }
code { font-size: .85em; overflow-wrap: anywhere; }
pre code { overflow-wrap: normal; font-size: inherit; }
summary { cursor: pointer; }
@media print { details { display: none; } }
"""

SCRIPT = """
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, body = head.closest("table").tBodies[0];
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const cell = row => row.cells[head.cellIndex];
    const key = row => cell(row).dataset.key ?? cell(row).textContent;
    const isNumber = x => x !== "" && !isNaN(x);
    const compare = (a, b) => {
      const x = key(a), y = key(b);
      if ((x === "") !== (y === "")) return x === "" ? 1 : -1;
      const order = isNumber(x) && isNumber(y) ? x - y : x.localeCompare(y);
      return down ? -order : order;
    };
    body.append(...[...body.rows].sort(compare));
  });
}
"""
