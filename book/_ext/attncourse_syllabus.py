"""Plans of a course whose minutes are added up from the chapters' cards and from the exercises."""

import re

from attncourse_cards import FromCards, duration, link_to, parse_item, row
from docutils.parsers.rst import directives


class Sessions(FromCards):
    """A plan, one session a line: `Week 1 | 00, 01, 02 reading, 03 (scaled_scores)`.

    With `start`, the plan of one day: each line is one chapter, or `15 | Break` for what is no chapter; the clock
    and the sums are computed.
    """

    has_content = True
    option_spec = {"start": directives.unchanged}  # noqa: RUF012

    def markdown(self, up):
        lines = [line for line in self.content if line.strip()]
        return day(lines, self.options["start"], up) if "start" in self.options else weeks(lines, up)


def minutes(card, tasks):
    return card.reading, sum(task.minutes for task in tasks)


def weeks(lines, up):
    """A row for each session, the sums, and which needs of a chapter the plan leaves out."""
    rows = [row("session", "chapters", "read and run", "exercises", "together"), "| --- | --- | --- | --- | --- |"]
    total, plan = [0, 0], []
    for line in lines:
        name, items = (part.strip() for part in line.split("|"))
        session = [parse_item(item) for item in items.split(",")]
        read, do = (sum(column) for column in zip(*(minutes(*item) for item in session), strict=True))
        total = [total[0] + read, total[1] + do]
        texts = [link_to(card, up) + chosen(card, tasks) for card, tasks in session]
        rows.append(row(name, "; ".join(texts), duration(read), duration(do), duration(read + do)))
        plan += [card for card, _ in session]
    rows.append(row("**all**", "", *(f"**{duration(n)}**" for n in (*total, sum(total)))))
    return "\n".join([*rows, "", left_out(plan)])


def day(lines, start, up):
    """A row for each item with the time of day when it begins, and the sums."""
    rows = [row("time", "what", "read and run", "exercises"), "| --- | --- | --- | --- |"]
    hours, rest = map(int, start.split(":"))
    now = began = 60 * hours + rest
    total, plan = [0, 0], []
    for line in lines:
        if extra := re.fullmatch(r"(\d+) \| (.+)", line.strip()):
            length, cells = int(extra[1]), [extra[2], "", ""]
        else:
            card, tasks = parse_item(line)
            read, do = minutes(card, tasks)
            length, total = read + do, [total[0] + read, total[1] + do]
            cells = [link_to(card, up) + chosen(card, tasks), f"{read} min", f"{do} min" if do else ""]
            plan.append(card)
        rows.append(row(clock(now), *cells))
        now += length
    rows.append(row(f"**to {clock(now)}**", f"**{duration(now - began)}**", *(f"**{duration(n)}**" for n in total)))
    return "\n".join([*rows, "", left_out(plan)])


def clock(minute):
    return f"{minute // 60:02}:{minute % 60:02}"


def chosen(card, tasks):
    """Which exercises, where they are not all: their numbers in the chapter's notebook."""
    if len(tasks) == len(card.tasks):
        return ""
    numbers = [str(card.tasks.index(task) + 1) for task in tasks]
    many = "exercises" if len(numbers) > 1 else "exercise"
    return f" ({many} {', '.join(numbers)})" if numbers else " (no exercises)"


def left_out(plan):
    """A sentence on chapters that a card of the plan names under "You need" and the plan has not had before it."""
    seen, missing = set(), []
    for card in plan:
        absent = [number for number in card.needs if number not in seen]
        missing += [f"{card.number} names {', '.join(absent)}"] if absent else []
        seen.add(card.number)
    text = "Needs named on the cards and not met by what comes before: " + "; ".join(missing) + "."
    return text if missing else "Every chapter comes after those that its card says it needs."


def setup(app):
    app.add_directive("sessions", Sessions)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
