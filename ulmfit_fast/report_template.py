"""The fixed parts of the report: the page's frame, its style sheet and its words."""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark; --ink: #1d2129; --paper: #fdfdfc; --muted: #6a707c; --line: #dfe2e7;
  --soft: #f3f4f6; --accent: 38 98 204; --against: 179 38 30; --wrong: #b3261e; --series-0: #2662cc;
  --series-1: #c2570c; --series-2: #16836b; --series-3: #8e44ad; --series-4: #b8860b;
  --series-5: #c2306d;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e4e6ea; --paper: #15181d; --muted: #989fab; --line: #343a44; --soft: #1e2229;
    --accent: 112 160 255; --against: 255 138 128; --wrong: #ff8a80; --series-0: #70a0ff;
    --series-1: #f2935c; --series-2: #4fc3a5; --series-3: #c792ea; --series-4: #e0b84c;
    --series-5: #f28bb0;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 54rem; color: var(--ink);
  background: var(--paper);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.01em; }
h2 { font-size: 1.25rem; margin: 2.8rem 0 .5rem; }
p { margin: .4rem 0 .8rem; }
.lead { font-size: 1.1rem; }
.note, caption, figcaption { color: var(--muted); font-size: .875rem; }
.banner {
  border-left: 4px solid var(--series-1); background: var(--soft); padding: .6rem .9rem;
  border-radius: 4px;
}
.scroll { overflow-x: auto; margin: .6rem 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; min-width: 60%; }
caption { text-align: left; caption-side: bottom; padding-top: .5rem; }
th, td {
  padding: .38rem .8rem; text-align: right; border-bottom: 1px solid var(--line);
  vertical-align: top;
}
thead th { border-bottom: 2px solid var(--line); font-weight: 600; }
th:first-child, td.text, .prose th, .pairs th { text-align: left; }
.prose th:last-child { text-align: right; }
th:first-child { padding-left: 0; }
tbody th { font-weight: 400; }
td.best { font-weight: 700; }
td { white-space: nowrap; }
.pairs td { white-space: normal; }
.confusion { min-width: 0; }
.confusion .note { color: inherit; opacity: .8; }
.confusion thead td { border: 0; }
.confusion td { text-align: center; min-width: 6.5rem; border: 1px solid var(--line); }
.wrong { color: var(--wrong); }
.words { white-space: normal; line-height: 2; text-align: left; overflow-wrap: anywhere; }
.word { border-radius: 3px; padding: .1em .15em; }
.for { background: rgb(var(--accent) / calc(var(--share) * .6)); }
.against {
  background: rgb(var(--against) / calc(var(--share) * .4)); text-decoration: underline;
  text-decoration-color: rgb(var(--against) / var(--share)); text-decoration-thickness: 2px;
}
article { border-top: 1px solid var(--line); padding: .6rem 0; }
figure { margin: 1rem 0; }
svg { width: 100%; height: auto; color: var(--ink); font-family: inherit; stroke-linejoin: round; }
code {
  font: .875em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere;
}
details summary { cursor: pointer; color: var(--muted); }
footer { margin-top: 3rem; border-top: 1px solid var(--line); padding-top: .8rem; }
"""

# The policy makes a browser refuse to load anything: the page is self-contained by construction.
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'"/>
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{sections}
</main>
<footer class="note">{footer}</footer>
</body>
</html>
"""

FOOTER = """ulmfit_fast {version}, seed {seed}.
The numbers are in <code>metrics.json</code>."""

WORDS_OPENING = """
<p class="lead">What each word did to the classifier's answer. A <span class="word for"
style="--share: .7">filled word</span> speaks for the answer, an <span class="word against"
style="--share: .7">underlined word</span> against it; the stronger the colour, the more. The score
of a word shows where the pointer rests on it.</p>
<p class="note">The score is the gradient of the answer's log-probability times the word's embedding
(or the gradient's size alone, which has no direction), relative to the largest of the text.</p>
"""

OPENING = """
<p class="lead">The task is proofreading: have two neighbouring words of this sentence been swapped?
With {labels} labelled sentences, <strong>{method}</strong> answers {score} of the held-out ones
correctly.</p>
{banner}
<p>The text is what this machine already holds: the English in the docstrings of its Python
packages. A language model is pre-trained on a general corpus (stage 1), fine-tuned on the target
corpus (stage 2), and becomes the encoder of a classifier (stage 3). Half of the sentences have one
swap; each sentence occurs once, so the words alone say nothing. The documents of the held-out
sentences, and any other that repeats one of them or eight words in a row of one, were kept out of
both corpora.</p>
"""

QUICK = """<p class="banner"><strong>Quick run.</strong> Less text and fewer steps: it shows that
everything works, and its numbers say little.</p>"""
