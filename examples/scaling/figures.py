"""figures.py - the figure of a sweep, as SVG text."""

import math
from xml.sax.saxutils import escape

COLOUR = {"forward": "#1b6ca8", "backward": "#c8553d"}
DASHES = ("", "7 4", "2 3", "9 3 2 3")  # one for each transport
GREY, LIGHT = "#555555", "#dddddd"
WIDTH = 1000
PANEL = (390, 240)             # of the axes
CORNERS = ((85, 100), (585, 100), (85, 425), (585, 425))
LOWER = 745                    # of the legend's first line


def steps(low, high, logarithmic):
    """Round numbers from about low to about high, for ticks."""
    if logarithmic:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        wide = len(decades) > 3
        return [m * 10.0 ** d for d in decades for m in ((1,) if wide else (1, 2, 5))]
    rough = (high - low) / 5
    step = 10.0 ** math.floor(math.log10(rough))
    step *= next(m for m in (1, 2, 5, 10) if m * step >= rough * 0.999)
    return [n * step for n in range(math.floor(low / step), math.ceil(high / step) + 1)]


class Panel:
    """Axes: numbers of ranks to the right, by powers of two, and a quantity upwards."""

    def __init__(self, corner, title, points, logarithmic=False, least=None):
        self.left, self.top = corner
        self.ranks = sorted({x for x, _ in points})
        values = [y for _, y in points] + ([] if least is None else [least])
        low, high = min(values), max(values)
        if low == high:
            low, high = (low / 2, high * 2) if logarithmic else (low - 1, high + 1)
        self.ticks = steps(low, high, logarithmic)
        while len(self.ticks) > 2 and self.ticks[1] <= low:
            self.ticks.pop(0)
        while len(self.ticks) > 2 and self.ticks[-2] >= high:
            self.ticks.pop()
        self.logarithmic = logarithmic
        self.title = title

    def x(self, ranks):
        low, high = math.log2(self.ranks[0]), math.log2(self.ranks[-1])
        share = (math.log2(ranks) - low) / (high - low) if high > low else 0.5
        return self.left + (0.05 + 0.9 * share) * PANEL[0]

    def y(self, value):
        low, high = self.ticks[0], self.ticks[-1]
        if self.logarithmic:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return self.top + PANEL[1] * (1 - (value - low) / (high - low))

    def axes(self, nodes):
        right, bottom = self.left + PANEL[0], self.top + PANEL[1]
        yield text(self.left, self.top - 12, self.title, size=15)
        for tick in self.ticks:
            y = self.y(tick)
            yield line([(self.left, y), (right, y)], GREY if tick == 0 else LIGHT)
            yield text(self.left - 8, y + 4, f"{tick:.10g}", anchor="end")
        yield line([(self.left, self.top), (self.left, bottom), (right, bottom)], GREY)
        yield text(self.left - 8, bottom + 20, "ranks", "end", 11, GREY)
        if max(nodes.values()) > 1:
            yield text(self.left - 8, bottom + 36, "nodes", "end", 11, GREY)
        beside = math.inf
        for ranks in reversed(self.ranks):
            x = self.x(ranks)
            yield line([(x, bottom), (x, bottom + 5)], GREY)
            if beside - x < 30:  # its number would touch the one to the right
                continue
            beside = x
            yield text(x, bottom + 20, ranks, "middle")
            if max(nodes.values()) > 1:
                yield text(x, bottom + 36, f"{nodes[ranks]:.0f}", "middle", 11, GREY)

    def curve(self, points, colour, dash="", dots="filled", width=2):
        """dots: filled, hollow, or none."""
        points = [(self.x(x), self.y(y)) for x, y in points]
        if len(points) > 1:
            yield line(points, colour, width, dash)
        fill = colour if dots == "filled" else "white"
        for x, y in points if dots != "none" else ():
            yield (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{fill}" stroke="{colour}" '
                   f'stroke-width="{width}"/>')


def text(x, y, what, anchor="start", size=13, colour="black"):
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
            f'fill="{colour}">{escape(str(what))}</text>')


def line(points, colour, width=1, dash=""):
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return (f'<polyline points="{path}" fill="none" stroke="{colour}" '
            f'stroke-width="{width}"{dashes}/>')


def fold(words, most):
    """A line cut into pieces of at most so many characters, at spaces where there are some."""
    pieces = [""]
    for word in words.split(" "):
        for part in [word[at:at + most] for at in range(0, len(word), most)] or [""]:
            if len(pieces[-1]) + 1 + len(part) > most:
                pieces.append("")
            pieces[-1] = f"{pieces[-1]} {part}".strip()
    return pieces


class Curves:
    """The points of a figure, as curves over the ranks for each pass and transport."""

    def __init__(self, sweeps):
        self.points = {}
        self.dash = {sweep.transport: DASHES[n % len(DASHES)] for n, sweep in enumerate(sweeps)}
        for sweep in sweeps:
            for point in sweep.points:
                self.points.setdefault((point["pass"], sweep.transport), []).append(point)

    def of(self, value):
        """(pass, transport, [(ranks, value)]) of every curve, where the value is not None."""
        for (way, transport), points in self.points.items():
            known = [(point["ranks"], value(point)) for point in points]
            yield way, transport, [(x, y) for x, y in known if y is not None]

    def all(self, *values):
        return [point for value in values for _, _, curve in self.of(value) for point in curve]


def draw_panel(curves, panel, value, **look):
    for way, transport, points in curves.of(value):
        yield from panel.curve(points, COLOUR[way], curves.dash[transport], **look)


def draw_panels(curves, nodes, on_gpus):
    unit, scale = ("TFLOP/s a GPU", 1e-3) if on_gpus else ("GFLOP/s a rank", 1)

    def time(point):
        return point["time_s"] * 1e3

    def ideal(point):
        return time(point) * point["efficiency"] if point["efficiency"] else None

    def rate(point):
        return point["gflops_a_rank"] * scale

    def efficiency(point):
        return point["efficiency"]

    def milliseconds(name):
        return lambda point: None if point.get(name) is None else point[name] * 1e3

    exposed, hidden = milliseconds("exposed_s"), milliseconds("hidden_s")

    panel = Panel(CORNERS[0], "time, ms; thin: at efficiency 1", curves.all(time, ideal), True)
    yield from panel.axes(nodes)
    yield from draw_panel(curves, panel, ideal, dots="none", width=0.7)
    yield from draw_panel(curves, panel, time)

    panel = Panel(CORNERS[1], unit, curves.all(rate), least=0)
    yield from panel.axes(nodes)
    yield from draw_panel(curves, panel, rate)

    if curves.all(efficiency):
        one = [(curves.all(time)[0][0], 1)]
        panel = Panel(CORNERS[2], "efficiency", curves.all(efficiency) + one, least=0)
        yield from panel.axes(nodes)
        yield from draw_panel(curves, panel, efficiency)

    known = curves.all(exposed, hidden)
    if known:
        title = "transfer of a rank, ms: exposed; thin: hidden"
        panel = Panel(CORNERS[3], title, known, least=0)
        yield from panel.axes(nodes)
        yield from draw_panel(curves, panel, hidden, dots="hollow", width=1)
        yield from draw_panel(curves, panel, exposed)
    else:
        left, top = CORNERS[3]
        yield text(left, top - 12, "transfer of a rank: not known", size=15)


def draw_legend(curves):
    """A line for each pass, a column for each transport."""
    for way, transport in curves.points:
        x = CORNERS[0][0] + 220 * list(curves.dash).index(transport)
        y = LOWER + 20 * list(COLOUR).index(way)
        yield line([(x, y - 5), (x + 34, y - 5)], COLOUR[way], 2, curves.dash[transport])
        yield text(x + 42, y, f"{way}, {transport}")


def draw_sweep(case, kind, sweeps, what):
    """Time, rate, efficiency and transfers over the ranks; one sweep for each transport."""
    curves = Curves(sweeps)
    points = [point for sweep in sweeps for point in sweep.points]
    nodes = {point["ranks"]: point["nodes"] or 0 for point in points}
    body = [text(CORNERS[0][0], 30, f"{case}, {kind} sweep", size=19)]
    if points:
        body += draw_panels(curves, nodes, points[0]["backend"] != "cpu")
        body += draw_legend(curves)
    notes = [f"not timed: {run['ranks']} ranks, transport {run['transport']}: {run['why']}"
             for sweep in sweeps for run in sweep.missing]
    lower = LOWER + 28
    for note in dict.fromkeys(notes):
        for piece in fold(note, 140):
            lower += 18
            body.append(text(CORNERS[0][0], lower, piece, size=12, colour=GREY))
    body.insert(1, text(CORNERS[0][0], 52, fold(what, 140)[0], size=12, colour=GREY))
    height = lower + 30
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
            f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">')
    ground = '<rect width="100%" height="100%" fill="white"/>'
    return "\n".join([head, ground, *body, "</svg>\n"])
