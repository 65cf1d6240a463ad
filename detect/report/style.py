"""The report's style sheet: system fonts, light and dark, one column on a phone."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --panel: #f5f6f8; --line: #dfe2e8; --ink: #1b1f27; --soft: #5d6675;
  --good: #2563eb; --bad: #c2410c; --warn: #fff4e0; --warn-line: #f0b45a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171c; --panel: #1d2128; --line: #323843; --ink: #e8eaee; --soft: #9da6b5;
    --good: #7fb0ff; --bad: #ffa366; --warn: #33270f; --warn-line: #8a6420;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 70rem;
  background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums;
}
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; letter-spacing: -0.01em; }
h2 { margin: 3rem 0 0.75rem; font-size: 1.3rem; letter-spacing: -0.005em; }
h3 { margin: 1.75rem 0 0.5rem; font-size: 1.05rem; }
p { margin: 0.4rem 0; max-width: 46rem; }
.soft { color: var(--soft); }
.lead { margin: 0.4rem 0 1.75rem; color: var(--soft); }
.tiles { display: grid; gap: 0.9rem; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); }
.tile { padding: 0.9rem 1.1rem; border-radius: 0.6rem; background: var(--panel); }
.tile b { display: block; font-size: 1.75rem; line-height: 1.25; font-weight: 650; }
.tile span { color: var(--soft); font-size: 0.9rem; }
ul.findings { margin: 1.5rem 0 0; padding-left: 1.15rem; max-width: 50rem; }
ul.findings li { margin: 0.4rem 0; }
.warning {
  margin: 1.25rem 0; padding: 0.7rem 1.1rem; max-width: 50rem;
  border: 1px solid var(--warn-line); border-radius: 0.6rem; background: var(--warn);
}
.scroll { overflow-x: auto; }
.scroll + p { margin-top: 0.9rem; }
table { border-collapse: collapse; min-width: 50%; font-size: 0.95rem; }
th, td { padding: 0.42rem 1.4rem 0.42rem 0; text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: 500; white-space: nowrap; }
tr { border-bottom: 1px solid var(--line); }
td.number, th.number { text-align: right; }
td.number { white-space: nowrap; }
tr.own td small { font-weight: 400; }
td small { display: block; color: var(--soft); font-size: 0.78rem; }
tr.own td { font-weight: 650; }
.figures {
  display: grid; gap: 1.5rem; margin-top: 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr));
}
figure { margin: 0; }
figure.wide { margin-top: 1.5rem; }
figure svg { display: block; width: 100%; height: auto; color: var(--ink); }
figure svg text { font-family: inherit !important; }
figcaption { margin-top: 0.35rem; color: var(--soft); font-size: 0.9rem; }
.examples {
  display: grid; gap: 1.1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr));
}
.example { padding: 0.8rem; border-radius: 0.6rem; background: var(--panel); }
.example .row { display: grid; gap: 0.4rem; grid-template-columns: repeat(3, 1fr); }
.example img { display: block; width: 100%; height: auto; border-radius: 0.3rem; }
.example figcaption { display: flex; flex-wrap: wrap; gap: 0.1rem 0.9rem; margin-top: 0.55rem; }
.example .name { color: var(--ink); overflow-wrap: anywhere; }
.example .verdict { margin-left: auto; font-weight: 600; }
.reject { color: var(--bad); }
.pass { color: var(--good); }
.scale { display: flex; align-items: center; gap: 0.7rem; margin: 0.8rem 0; font-size: 0.9rem; }
.scale i { flex: 0 1 16rem; height: 0.75rem; border-radius: 0.2rem; }
@media (max-width: 40rem) {
  body { padding: 1.5rem 1rem 3rem; }
  h1 { font-size: 1.5rem; }
  th, td { padding-right: 0.9rem; }
  th { white-space: normal; }
  td:first-child { min-width: 7rem; }
  .tiles { grid-template-columns: 1fr 1fr; }
  figure.wide { overflow-x: auto; }
  figure.wide svg { min-width: 36rem; }
}
@media print { body { max-width: none; } .example, figure { break-inside: avoid; } }
"""
