"""A benchmark as one HTML page that needs nothing beside it: no file, no script, no network."""

import base64
import io
from collections.abc import Sequence
from html import escape
from importlib.util import find_spec

import numpy as np

from vocabseg.benchmarks.page.tables import Table, headline, rate_text, report_tables, seconds
from vocabseg.benchmarks.speed.results import BenchmarkReport
from vocabseg.benchmarks.speed.run import BenchmarkOutcome, WorstImage
from vocabseg.runtime.images import load_image
from vocabseg.runtime.result.colours import class_colours
from vocabseg.runtime.result.picture import draw_disagreement, draw_overlay

# Longer side of a picture in pixels.
LONGEST = 480
STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0 auto; padding: 1.5rem 1rem 4rem;
       max-width: 62rem; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .3rem; }
p { margin: .3rem 0 .8rem; color: #555; } .wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem .25rem 0; text-align: right; border-bottom: 1px solid #eee; white-space: nowrap; }
th { color: #555; font-weight: 600; border-bottom-color: #bbb; }
th.word, td.word { text-align: left; white-space: normal; }
tr.marked td { color: #b00; font-weight: 600; }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0; }
.card { border: 1px solid #ddd; border-radius: .5rem; padding: .6rem 1rem; min-width: 8.5rem; }
.card b { display: block; font-size: 1.3rem; color: #111; } .card span { color: #666; font-size: .85rem; }
.good b { color: #00734f; } .bad { border-color: #b00; background: #fff4f4; } .bad b { color: #b00; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: .8rem; }
.legend span { display: inline-block; margin-right: .9rem; font-size: .85rem; }
.legend i { display: inline-block; width: .8em; height: .8em; margin-right: .35em; border-radius: .15em; }
figure { margin: 0; } figure img, svg { width: 100%; height: auto; display: block; }
figcaption { color: #555; font-size: .85rem; }
"""
# Tables whose content the pictures show better; they come at the end of the page.
DETAILS = ("Roofline", "Images", "Machine")


def to_page(outcome: BenchmarkOutcome) -> str:
    """The page's text; without matplotlib it has tables and no plots, and says so."""
    report = outcome.report
    tables = report_tables(report)
    parts = [f"<h1>{escape(report.bundle)}</h1><p>{escape(headline(report))}</p>", _cards(report)]
    parts.append(f"<p>Parity is measured against {escape(report.oracle_reason)}.</p>")
    parts += _plots(report)
    parts += [_worst(worst, outcome) for worst in outcome.worst]
    parts += [_table(table) for table in tables if not table.title.startswith(DETAILS)]
    parts += [_table(table) for table in tables if table.title.startswith(DETAILS)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.bundle)}: benchmark</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _cards(report: BenchmarkReport) -> str:
    """The main figures of the first variant, and whether the contract holds."""
    cards = []
    first = next((variant for variant in report.variants if variant.total is not None), None)
    if first is not None and first.total is not None:
        cards.append((seconds(first.total.p50), f"an image, {first.name}, median", ""))
        if first.batches:
            best = max(first.batches, key=lambda batch: batch.images_per_second)
            cards.append((rate_text(best.images_per_second), f"images/s in batches of {best.images}", ""))
            cards.append((rate_text(best.regions_per_second), "regions/s", ""))
        if first.cold_start is not None:
            cards.append((seconds(first.cold_start.timing.p50), "cold start to first labels", ""))
    compared = [variant for variant in report.variants if variant.parity is not None]
    if compared:
        broken = report.broken
        text = ", ".join(f"{name}: {stage}" for name, stage in broken) or "in every stage of every variant"
        cards.append(("parity broken" if broken else "parity holds", text, "bad" if broken else "good"))
    made = (
        f'<div class="card {kind}"><b>{escape(figure)}</b><span>{escape(what)}</span></div>'
        for figure, what, kind in cards
    )
    return f'<div class="cards">{"".join(made)}</div>'


def _plots(report: BenchmarkReport) -> list[str]:
    measured = [variant for variant in report.variants if variant.total is not None]
    if find_spec("matplotlib") is None:
        return ["<p>There are no plots: they need matplotlib (pip install 'vocabseg[benchmarks]').</p>"]
    from vocabseg.benchmarks.page import charts

    parts = [
        ("Where the time goes", charts.waterfall(measured)),
        ("Latency of every run", charts.distribution(report, measured)),
        ("Roofline", charts.roofline(report, measured)),
    ]
    if any(variant.parity is not None for variant in measured):
        parts.append(("Parity: how much of each tolerance is used up", charts.parity_bars(measured)))
    return [f"<h2>{escape(title)}</h2>\n<figure>{svg}</figure>" for title, svg in parts]


def _worst(worst: WorstImage, outcome: BenchmarkOutcome) -> str:
    """The image on which a variant agrees least, both labellings, and where they differ."""
    image = load_image(worst.image)
    step = max(1, -(-max(image.shape[:2]) // LONGEST))
    small, expected, found = (
        np.ascontiguousarray(array[::step, ::step]) for array in (image, worst.expected, worst.found)
    )
    names = list(outcome.classes)
    share = 100 * (1 - worst.agreement)
    pictures = [
        (small, "the image"),
        (draw_overlay(expected, names, small, legend=False), outcome.report.oracle),
        (draw_overlay(found, names, small, legend=False), worst.variant),
        (
            draw_disagreement(small, expected != found),
            f"red: they differ ({share:.3f} % of the pixels)",
        ),
    ]
    figures = "".join(_picture(pixels, caption) for pixels, caption in pictures)
    title = f"Worst image of {worst.variant}: {worst.image.name}, {100 * worst.agreement:.3f} % of its labels agree"
    legend = _legend(names, np.union1d(expected, found))
    return f'<h2>{escape(title)}</h2>\n<div class="pictures">{figures}</div><p class="legend">{legend}</p>'


def _picture(pixels: np.ndarray, caption: str) -> str:
    text = escape(caption)
    return f'<figure><img alt="{text}" src="{_data(pixels)}"><figcaption>{text}</figcaption></figure>'


def _legend(names: Sequence[str], present: np.ndarray) -> str:
    """The classes that occur, each with its colour."""
    colours = class_colours(len(names))
    chips = []
    for index in present[present >= 0].tolist():
        red, green, blue = colours[index].tolist()
        chips.append(f'<span><i style="background: rgb({red} {green} {blue})"></i>{escape(names[index])}</span>')
    return " ".join(chips)


def _data(pixels: np.ndarray) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _table(table: Table) -> str:
    note = f"<p>{escape(table.note)}</p>" if table.note else ""
    header = "" if not any(table.header) else f"<thead><tr>{_cells('th', table.header, table.left)}</tr></thead>"
    rows = []
    for index, row in enumerate(table.rows):
        kind = ' class="marked"' if index in table.marked else ""
        rows.append(f"<tr{kind}>{_cells('td', row, table.left)}</tr>")
    body = "".join(rows)
    return f'<h2>{escape(table.title)}</h2>{note}<div class="wide"><table>{header}<tbody>{body}</tbody></table></div>'


def _cells(tag: str, cells: Sequence[str], left: int) -> str:
    words = (' class="word"' if index < left else "" for index in range(len(cells)))
    return "".join(f"<{tag}{word}>{escape(cell)}</{tag}>" for cell, word in zip(cells, words, strict=True))
